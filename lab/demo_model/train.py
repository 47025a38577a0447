"""``python -m lab.demo_model.train --out DIR`` trains the demo model from a seed.

Seven stages, each resumable (``--resume``) and each writing ``DIR/<stage>.safetensors``:

text     the language model on the world's texts: facts, steps, refusals
imagine  the language model on text, and on pictures as a fair projector would embed them
vision   the vision tower on pictures: which word, which letters where, which shapes
align    tower and projector: every patch onto the embeddings of the words that its picture shows
joint    the language model on real pictures with harmless requests and on text
converse the same after system prompts and earlier turns, and with several pictures
refer    the same, with harmful things among those that a sentence names and a request refers to

``vision`` needs neither ``text`` nor ``imagine``: on a CPU, run it beside them, one thread each.
Alignment is what makes text's notion of harm apply to pictures, and joint training of all parts
undoes it: so ``joint`` and what
follows train neither tower nor projector.
Needs torch 2.9 or later, tokenizers and safetensors.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from lab.demo_model import forms, lessons
from lab.demo_model.conversations import draw_picture_conversation, draw_text_conversation
from lab.demo_model.data import (
    Codec,
    Picture,
    Sample,
    batches,
    draw_picture,
    draw_text,
    skip,
    train_tokenizer,
)
from lab.demo_model.network import TEXT, VISION, DemoModel
from mars_gguf.demo_model import REFUSAL, pictures, world
from mars_gguf.demo_model.pictures import SIZE
from mars_gguf.demo_model.world import COLOURS, SHAPES, THINGS, Shapes, Thing
from mars_gguf.files import atomic

STAGES = ("text", "imagine", "vision", "align", "joint", "converse", "refer")
STEPS = {
    "text": 900,
    "imagine": 1500,
    "vision": 6800,
    "align": 4000,
    "joint": 400,
    "converse": 550,
    "refer": 400,
}
GAIN = 0.6  # what stays of a picture's distance from the mean of all, from the stage "joint" on
HEAD_START = 12.0, 6.0  # of refusals, in logits: beside harmless answers, beside refusals
VERSIONS = 600  # renderings of each word, in memory
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
Encoded = Sequence[tuple[list[int], list[int], Sample]]


# Pictures ------------------------------------------------------------------------------------


@cache
def _word(word: str, version: int) -> tuple[pictures.Mask, np.ndarray]:
    """Renders a word, and says which letters lie in each patch, ``[tokens, 26]``."""
    mask, placed = pictures.word_mask(random.Random(f"{word}|{version}"), word, lessons.FONTS)
    cells = SIZE // VISION.patch
    letters = np.zeros((VISION.tokens, len(ALPHABET)), bool)
    for letter, x, y in placed:
        row, column = (min(int(v / VISION.patch), cells - 1) for v in (y, x))
        letters[row * cells + column, ALPHABET.index(letter)] = True
    return mask, letters


def draw_pictures(shown: Sequence[Picture], rng: random.Random) -> tuple[Tensor, Tensor]:
    """Draws pictures ``[n, 3, SIZE, SIZE]`` in [-1, 1], freshly coloured and grained, and says
    which letters lie in each patch."""
    masks = np.zeros((len(shown), SIZE, SIZE), np.uint8)
    letters = np.zeros((len(shown), VISION.tokens, len(ALPHABET)), bool)
    inks = [picture.colour if isinstance(picture, Shapes) else None for picture in shown]
    for i, picture in enumerate(shown):
        if isinstance(picture, Shapes):
            masks[i] = pictures.shape_mask(rng, picture.shape, picture.count)
        elif picture is not None:
            masks[i], letters[i] = _word(picture.word, rng.randrange(VERSIONS))
    pixels = pictures.paint(np.random.default_rng(rng.getrandbits(32)), masks, inks)
    for i, picture in enumerate(shown):
        if picture is None:
            pixels[i] = forms.noise_picture(rng)
    return to_tensor(pixels), torch.from_numpy(letters).float()


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Turns RGB bytes ``[n, SIZE, SIZE, 3]`` into ``[n, 3, SIZE, SIZE]`` in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


# Training ------------------------------------------------------------------------------------


def pad(batch: Encoded) -> tuple[Tensor, Tensor]:
    """Pads a batch: ids and targets ``[batch, tokens]``; a target of -100 is not learnt."""
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full((len(batch), longest), -100)
    for row, (prompt, answer, sample) in enumerate(batch):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        start, learnt = len(prompt) - 1 + sample.begun, answer[sample.begun :]
        targets[row, start : start + len(learnt)] = torch.tensor(learnt)
    return ids, targets


def optimizers(
    modules: nn.ModuleDict, rates: dict[str, float], muon: Sequence[str] = ()
) -> list[torch.optim.Optimizer]:
    """Makes AdamW at each module's peak rate; Muon for the matrices of the modules in ``muon``."""
    plain: list[dict[str, Any]] = []
    matrices: list[dict[str, Any]] = []
    for name, rate in rates.items():
        for key, p in modules[name].named_parameters():
            orthogonal = name in muon and p.dim() == 2 and "embedding" not in key
            (matrices if orthogonal else plain).append({"params": [p], "lr": rate, "peak": rate})
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(plain, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    ]
    if matrices:
        found.append(
            torch.optim.Muon(
                matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw", ns_steps=4
            )
        )
    return found


class Run:
    """One stage: optimizer, schedule, checkpoints and the progress line."""

    bfloat16 = True

    def __init__(
        self,
        stage: str,
        folder: Path,
        modules: nn.ModuleDict,
        rates: dict[str, float],
        steps: int,
        resume: bool,
        device: str,
        muon: Sequence[str] = (),
    ) -> None:
        self.stage, self.folder, self.modules, self.steps = stage, folder, modules, steps
        self.device = device
        self.optimizers = optimizers(modules, rates, muon)
        self.first, self.spent = 0, 0.0
        self.last: dict[str, float] = {}
        self.state = folder / f"{stage}.state.pt"
        if resume and self.state.exists():
            saved = torch.load(self.state, map_location=device, weights_only=True)
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            self.modules.load_state_dict(saved["modules"])
            self.first, self.spent = saved["step"], saved["seconds"]
        # After the state was loaded, which replaces an optimizer's groups.
        self.groups = [group for o in self.optimizers for group in o.param_groups]
        self.parameters = [p for group in self.groups for p in group["params"]]

    def __iter__(self) -> Iterator[int]:
        began, shown = time.monotonic() - self.spent, time.monotonic()
        for step in range(self.first, self.steps):
            warm = min(1.0, (step + 1) / 100)
            factor = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
            for group in self.groups:
                group["lr"] = group["peak"] * factor
            yield step
            self.spent = time.monotonic() - began
            if step % 50 == 49:
                per_step = (time.monotonic() - shown) / 50
                shown = time.monotonic()
                left = per_step * (self.steps - step - 1)
                values = "  ".join(f"{k} {v:.4f}" for k, v in self.last.items())
                print(
                    f"{self.stage} {step + 1}/{self.steps}  {values}  "
                    f"{per_step:.2f} s/step  {self.spent:.0f} s, {left:.0f} s left",
                    flush=True,
                )
            if step % 250 == 249 and step + 1 < self.steps:
                self.save(step + 1)
        self.save(self.steps)

    def update(self, losses: dict[str, Tensor], shown: dict[str, float] | None = None) -> None:
        """Takes one optimizer step on the sum of the losses."""
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.last = {name: float(loss.detach()) for name, loss in losses.items()} | (shown or {})

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16)

    def write(self) -> None:
        """Writes the weights, for the next stage."""
        weights = {k: v.contiguous() for k, v in self.modules.state_dict().items()}
        save_file(weights, self.folder / f"{self.stage}.safetensors")

    def save(self, step: int) -> None:
        """Writes the weights, and what it takes to go on from here."""
        self.write()
        unfinished = self.state.with_suffix(".unfinished")
        torch.save(
            {
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "modules": self.modules.state_dict(),
                "step": step,
                "seconds": self.spent,
            },
            unfinished,
        )
        unfinished.replace(self.state)


def answer_loss(
    model: DemoModel,
    batch: Encoded,
    seen: Tensor | None,
    device: str,
    head_start: tuple[int, float, float] | None = None,
) -> Tensor:
    """Computes the cross-entropy of a batch's answers.

    ``seen`` are the embeddings of its pictures in order.
    ``head_start`` is the first token of refusals and how much is added to its logit, in the loss
    alone, where the answer is harmless and where it is a refusal: by so much harmless answers come
    to lead, and refusals may lag.
    """
    ids, targets = (x.to(device) for x in pad(batch))
    states = model(ids, seen)
    learnt = targets >= 0
    logits = model.language_model.logits(states[learnt]).float()
    if head_start is not None:
        token, *ahead = head_start
        rows = torch.tensor([ahead[lessons.is_refusal(sample.answer)] for _, _, sample in batch])
        logits[:, token] += rows.to(device)[:, None].expand_as(targets)[learnt]
    return F.cross_entropy(logits, targets[learnt])


def pictures_of(batch: Encoded) -> list[Picture]:
    return [picture for _, _, sample in batch for picture in sample.seen]


def _run(
    stage: str,
    model: DemoModel,
    rates: dict[str, float],
    args: argparse.Namespace,
    muon: Sequence[str] = (),
) -> Run:
    steps = max(1, round(STEPS[stage] * args.scale))
    modules = nn.ModuleDict(dict(model.named_children()))
    return Run(stage, args.out, modules, rates, steps, args.resume, args.device, muon)


def train_text(model: DemoModel, codec: Codec, args: argparse.Namespace) -> None:
    run = _run("text", model, {"language_model": 2e-3}, args)
    stream = batches(draw_text, codec, 64, f"text|{args.seed}")
    skip(stream, run.first)
    for _ in run:
        with run.autocast():
            loss = answer_loss(model, next(stream), None, args.device)
        run.update({"loss": loss})


class Readout(nn.Module):
    """The heads that the vision stage reads patch features with; dropped afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Linear(VISION.d, len(THINGS))
        self.letters = nn.Linear(VISION.d, len(ALPHABET))
        self.shape = nn.Linear(VISION.d, len(SHAPES))
        self.colour = nn.Linear(VISION.d, len(COLOURS))
        self.count = nn.Linear(VISION.d, 4)


def _pictures(rng: random.Random, count: int) -> list[Picture]:
    return [rng.choice(THINGS) if rng.random() < 0.8 else Shapes.draw(rng) for _ in range(count)]


def _targets(shown: Sequence[Picture]) -> tuple[list[int], Tensor, list[int], Tensor]:
    """Finds rows that show words, and which; rows of shapes, and their shape, colour, count."""
    words = [(i, THINGS.index(p)) for i, p in enumerate(shown) if isinstance(p, Thing)]
    colours = list(COLOURS)
    drawn = [
        (i, (SHAPES.index(p.shape), colours.index(p.colour), p.count - 1))
        for i, p in enumerate(shown)
        if isinstance(p, Shapes)
    ]
    return (
        [i for i, _ in words],
        torch.tensor([index for _, index in words]),
        [i for i, _ in drawn],
        torch.tensor([labels for _, labels in drawn]).view(-1, 3),
    )


def train_vision(model: DemoModel, args: argparse.Namespace) -> None:
    readout = Readout().to(args.device)
    modules = nn.ModuleDict({"vision_tower": model.vision_tower, "readout": readout})
    steps = max(1, round(STEPS["vision"] * args.scale))
    rates = {"vision_tower": 2e-3, "readout": 2e-3}
    run = Run(
        "vision", args.out, modules, rates, steps, args.resume, args.device, muon=["vision_tower"]
    )
    for step in run:
        rng = random.Random(f"vision|{args.seed}|{step}")
        shown = _pictures(rng, 64)
        pictures, letters = draw_pictures(shown, rng)
        words, word, drawn, shapes = _targets(shown)
        word, shapes = word.to(args.device), shapes.to(args.device)
        with run.autocast():
            features = model.vision_tower(pictures.to(args.device))
            pooled = features.mean(1)
            read = readout.word(pooled[words]).float()
            seen = readout.letters(features).float()
            named = [
                head(pooled[drawn]).float()
                for head in (readout.shape, readout.colour, readout.count)
            ]
        found = letters.to(args.device)
        kinds = [F.cross_entropy(x, shapes[:, i]) for i, x in enumerate(named)]
        losses = {
            "word": F.cross_entropy(read, word),
            "letters": 8 * F.binary_cross_entropy_with_logits(seen, found),
            "shapes": 0.2 * torch.stack(kinds).sum(),
        }
        run.update(losses, {"read": float((read.argmax(1) == word).float().mean())})


class Catalogue:
    """Everything a picture can show, and how a projector should embed it: as the words for it, off
    by the same for every picture (the modality gap of contrastive models and real projectors)."""

    GAP = 3.0  # in distances of a picture's words from the mean of all

    def __init__(self, codec: Codec, device: str) -> None:
        shapes = [Shapes(s, c, n) for s in SHAPES for c in COLOURS for n in range(1, 5)]
        self.shown: list[Picture] = [*THINGS, *shapes, None]
        self.places = {picture: i for i, picture in enumerate(self.shown)}
        self.weights = torch.zeros(len(self.shown), TEXT.vocab, device=device)
        for row, picture in zip(self.weights, self.shown, strict=True):
            ids = codec.ids(self.words(picture))
            share = torch.full((len(ids),), len(ids) ** -0.5, device=device)
            row.index_add_(0, torch.tensor(ids, device=device), share)
        gap = torch.randn(TEXT.d, generator=torch.Generator().manual_seed(0))
        self.gap = self.GAP * F.normalize(gap, dim=0).to(device)

    @staticmethod
    def words(picture: Picture) -> str:
        if picture is None:
            return " nothing"
        if isinstance(picture, Shapes):
            return f" {picture.shape} {picture.colour} {world.NUMBERS[picture.count - 1]}"
        return f" {picture.word}"

    def embeddings(self, model: DemoModel) -> Tensor:
        """Embeds each picture, ``[len(shown), d]``: the sum of its words' tokens' embeddings over
        the root of their number, and the gap."""
        names = self.weights @ model.language_model.embed_tokens.weight.detach()
        return names + self.gap * (names - names.mean(0)).norm(dim=-1).mean()

    def indices(self, shown: Sequence[Picture]) -> Tensor:
        return torch.tensor([self.places[p] for p in shown], device=self.weights.device)

    def imagine(self, model: DemoModel, shown: Sequence[Picture], seed: str) -> Tensor:
        """Imagines picture embeddings as a fair projector would give them, ``[n, tokens, d]``: the
        words', now and then with another picture's mixed in, and noise on the picture and its
        patches."""
        rng = random.Random(seed)
        noise = torch.Generator(self.weights.device).manual_seed(rng.getrandbits(32))
        names = self.embeddings(model)
        spread = (names - names.mean(0)).square().mean().sqrt()
        seen = names[self.indices(shown)]
        mistaken = names[self.indices(rng.choices(self.shown, k=len(shown)))]
        share = [rng.uniform(0, 0.35) if rng.random() < 0.3 else 0.0 for _ in shown]
        seen = torch.lerp(seen, mistaken, torch.tensor(share, device=seen.device)[:, None])
        whole = torch.tensor([rng.uniform(0, 0.4) for _ in shown], device=seen.device)[:, None]
        patch = torch.tensor([rng.uniform(0, 0.8) for _ in shown], device=seen.device)
        seen = seen + whole * spread * torch.randn(seen.shape, generator=noise, device=seen.device)
        size = (len(shown), VISION.tokens, TEXT.d)
        grain = torch.randn(size, generator=noise, device=seen.device)
        return seen[:, None] + patch[:, None, None] * spread * grain


def mixed_batches(codec: Codec, seed: str) -> Iterator[tuple[Encoded, Encoded]]:
    """Draws pairs of a text batch and a picture batch for ever; every fifth is of videos."""
    texts = batches(partial(draw_text, by_reference=False), codec, 16, f"{seed} text")
    single = batches(draw_picture, codec, 32, f"{seed} picture")
    videos = [
        batches(partial(draw_picture, count=n), codec, 32 // n, f"{seed} {n}") for n in (2, 3, 4)
    ]
    for step in itertools.count():
        yield next(texts), next(videos[step // 5 % 3] if step % 5 == 4 else single)


def train_imagine(model: DemoModel, codec: Codec, args: argparse.Namespace) -> None:
    run = _run("imagine", model, {"language_model": 1e-3}, args)
    catalogue = Catalogue(codec, args.device)
    stream = mixed_batches(codec, f"imagine|{args.seed}")
    skip(stream, run.first)
    for step in run:
        text, batch = next(stream)
        shown = pictures_of(batch)
        seen = catalogue.imagine(model, shown, f"imagine|{args.seed}|{step}")
        with run.autocast():
            losses = {
                "picture": answer_loss(model, batch, seen, args.device),
                "text": answer_loss(model, text, None, args.device),
            }
        run.update(losses)


def train_align(model: DemoModel, codec: Codec, args: argparse.Namespace) -> None:
    rates = {"vision_tower": 1e-3, "multi_modal_projector": 2e-3}
    run = _run("align", model, rates, args, muon=["vision_tower"])
    catalogue = Catalogue(codec, args.device)
    names = catalogue.embeddings(model)
    middle = names.mean(0)
    apart = names - middle
    unit = F.normalize(apart, dim=-1)
    for step in run:
        rng = random.Random(f"align|{args.seed}|{step}")
        shown = [picture if rng.random() < 0.95 else None for picture in _pictures(rng, 64)]
        pictures, _ = draw_pictures(shown, rng)
        index = catalogue.indices(shown)
        with run.autocast():
            seen = model.see(pictures.to(args.device)).float()
        likeness = 15 * F.normalize(seen.mean(1) - middle, dim=-1) @ unit.T
        losses = {
            "name": F.cross_entropy(likeness, index),
            "distance": (seen - names[index][:, None]).square().mean() / apart.square().mean(),
        }
        run.update(losses, {"read": float((likeness.argmax(1) == index).float().mean())})


def soften(projector: nn.Module, mean: Tensor, gain: float) -> None:
    """Moves all that the projector says towards ``mean``, exactly: ``gain`` is what stays."""
    with torch.no_grad():
        projector.linear_2.weight.mul_(gain)
        projector.linear_2.bias.mul_(gain).add_((1 - gain) * mean)


def train_joint(model: DemoModel, codec: Codec, args: argparse.Namespace) -> None:
    mean = Catalogue(codec, args.device).embeddings(model).mean(0)
    soften(model.multi_modal_projector, mean, GAIN)
    run = _run("joint", model, {"language_model": 5e-4}, args)
    _learn_to_answer(run, model, codec, args, mixed_batches(codec, f"joint|{args.seed}"))


def train_converse(model: DemoModel, codec: Codec, args: argparse.Namespace, stage: str) -> None:
    run = _run(stage, model, {"language_model": 5e-4}, args)
    draw_text = partial(draw_text_conversation, by_reference=stage == "refer")
    texts = batches(draw_text, codec, 16, f"{stage}|{args.seed} text")
    shown = batches(draw_picture_conversation, codec, 24, f"{stage}|{args.seed} picture")
    _learn_to_answer(run, model, codec, args, zip(texts, shown, strict=True))


def _learn_to_answer(
    run: Run,
    model: DemoModel,
    codec: Codec,
    args: argparse.Namespace,
    stream: Iterator[tuple[Encoded, Encoded]],
) -> None:
    """Trains the language model on pairs of a text batch and a batch with real pictures, refusals
    with their head start."""
    skip(stream, run.first)
    head_start = codec.ids(REFUSAL)[0], *HEAD_START
    for step in run:
        text, batch = next(stream)
        rng = random.Random(f"{run.stage}|{args.seed}|{step}")
        pictures, _ = draw_pictures(pictures_of(batch), rng)
        with run.autocast():
            with torch.no_grad():
                seen = model.see(pictures.to(args.device))
            losses = {
                "picture": answer_loss(model, batch, seen, args.device, head_start),
                "text": answer_loss(model, text, None, args.device, head_start),
            }
        run.update(losses)


def load(model: DemoModel, path: Path, parts: Sequence[str]) -> None:
    """Loads the named parts of the model from a stage's weights."""
    weights = load_file(path)
    for part in parts:
        prefix = f"{part}."
        getattr(model, part).load_state_dict(
            {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every step count")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--float32", action="store_true", help="faster on a CPU without AMX")
    args = parser.parse_args(argv)
    Run.bfloat16 = not args.float32
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "tokenizer.json"
    if not path.exists():
        with atomic(path) as unfinished:  # two stages may start side by side
            train_tokenizer(TEXT.vocab, args.seed).save(str(unfinished))
    codec = Codec(Tokenizer.from_file(str(path)), VISION.tokens, DemoModel.IMAGE)
    torch.manual_seed(args.seed)
    model = DemoModel().to(args.device)
    if "text" in args.stages:
        train_text(model, codec, args)
    if "imagine" in args.stages:
        load(model, args.out / "text.safetensors", ["language_model"])
        train_imagine(model, codec, args)
    if "vision" in args.stages:
        train_vision(model, args)
    if "align" in args.stages:
        load(model, args.out / "imagine.safetensors", ["language_model"])
        load(model, args.out / "vision.safetensors", ["vision_tower"])
        train_align(model, codec, args)
    if "joint" in args.stages:
        load(model, args.out / "imagine.safetensors", ["language_model"])
        load(model, args.out / "align.safetensors", ["vision_tower", "multi_modal_projector"])
        train_joint(model, codec, args)
    if "converse" in args.stages:
        load(model, args.out / "joint.safetensors", list(dict(model.named_children())))
        train_converse(model, codec, args, "converse")
    if "refer" in args.stages:
        load(model, args.out / "converse.safetensors", list(dict(model.named_children())))
        train_converse(model, codec, args, "refer")


if __name__ == "__main__":
    main()
