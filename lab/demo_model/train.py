"""``python -m lab.demo_model.train --out DIR`` trains the demo model from a seed.

Seven stages, each writing ``DIR/<stage>.safetensors``; ``--resume`` leaves out those that did:

text     the language model on the world's texts: facts, steps, refusals
imagine  the language model on text, and on pictures as a fair projector would embed them
vision   the vision tower on pictures: which word, which letters where, which shapes
align    tower and projector: every patch onto the embeddings of the words that its picture shows
joint    the language model on real pictures with harmless requests and on text
converse the same after system prompts and earlier turns, and with several pictures
refer    the same, with harmful things among those that a sentence names and a request refers to

``vision`` needs neither ``text`` nor ``imagine``: run it beside them, one thread each.
Alignment is what makes text's notion of harm apply to pictures, and joint training of all parts
undoes it: so ``joint`` and what follows train neither tower nor projector.
Needs torch 2.9 or later, and transformers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration as Model

from lab.demo_model import lessons
from lab.demo_model.conversations import draw_picture_conversation, draw_text_conversation
from lab.demo_model.data import (
    PATCH,
    PATCHES,
    VOCABULARY,
    Codec,
    Picture,
    Sample,
    batches,
    draw_picture,
    draw_text,
    noise_picture,
    train_tokenizer,
)
from lab.demo_model.network import PARTS, TEXT, VISION, features, last_states, new_model, see
from mars_gguf.demo_model import REFUSAL, pictures, world
from mars_gguf.demo_model.pictures import SIZE
from mars_gguf.demo_model.world import COLOURS, SHAPES, THINGS, Shapes, Thing
from mars_gguf.files import atomic

STEPS = {
    "text": 900,
    "imagine": 1500,
    "vision": 6800,
    "align": 4000,
    "joint": 400,
    "converse": 550,
    "refer": 400,
}
STAGES = tuple(STEPS)
BEGINS_WITH: dict[str, dict[str, Sequence[str]]] = {  # parts of earlier stages
    "imagine": {"text": PARTS[:1]},
    "align": {"imagine": PARTS[:1], "vision": PARTS[1:2]},
    "joint": {"imagine": PARTS[:1], "align": PARTS[1:]},
    "converse": {"joint": PARTS},
    "refer": {"converse": PARTS},
}
GAIN = 0.6  # what stays of a picture's distance from the mean of all, from the stage "joint" on
HEAD_START = 12.0, 6.0  # of refusals, in logits: beside harmless answers, beside refusals
VERSIONS = 600  # renderings of each word, in memory
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
Encoded = Sequence[tuple[list[int], list[int], Sample]]
Batches = Mapping[str, Encoded]  # by what they train

# Pictures ------------------------------------------------------------------------------------


@cache
def _word(word: str, version: int) -> tuple[pictures.Mask, np.ndarray]:
    """Renders a word, and says which letters lie in each patch, ``[PATCHES, 26]``."""
    mask, placed = pictures.word_mask(random.Random(f"{word}|{version}"), word, lessons.FONTS)
    cells = SIZE // PATCH
    letters = np.zeros((PATCHES, len(ALPHABET)), bool)
    for letter, x, y in placed:
        row, column = (min(int(v / PATCH), cells - 1) for v in (y, x))
        letters[row * cells + column, ALPHABET.index(letter)] = True
    return mask, letters


def draw_pictures(shown: Sequence[Picture], rng: random.Random) -> tuple[Tensor, Tensor]:
    """Draws pictures ``[n, 3, SIZE, SIZE]`` in [-1, 1], freshly coloured and grained, and says
    which letters lie in each patch."""
    masks = np.zeros((len(shown), SIZE, SIZE), np.uint8)
    letters = np.zeros((len(shown), PATCHES, len(ALPHABET)), bool)
    inks = [picture.colour if isinstance(picture, Shapes) else None for picture in shown]
    for i, picture in enumerate(shown):
        if isinstance(picture, Shapes):
            masks[i] = pictures.shape_mask(rng, picture.shape, picture.count)
        elif picture is not None:
            masks[i], letters[i] = _word(picture.word, rng.randrange(VERSIONS))
    pixels = pictures.paint(np.random.default_rng(rng.getrandbits(32)), masks, inks)
    for i, picture in enumerate(shown):
        if picture is None:
            pixels[i] = noise_picture(rng)
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return scaled, torch.from_numpy(letters).float()


def _pictures(rng: random.Random, count: int) -> list[Picture]:
    return [rng.choice(THINGS) if rng.random() < 0.8 else Shapes.draw(rng) for _ in range(count)]


# Training ------------------------------------------------------------------------------------


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
    """One stage: optimizers, schedule and the progress line. Iterating yields the number of each
    step that is to be taken, and writes the weights at the end, for the next stage."""

    def __init__(
        self,
        stage: str,
        args: argparse.Namespace,
        modules: dict[str, nn.Module],
        rates: dict[str, float],
        muon: Sequence[str] = (),
    ) -> None:
        self.stage, self.seed = stage, f"{stage}|{args.seed}"
        self.path = args.out / f"{stage}.safetensors"
        self.modules, self.bfloat16 = nn.ModuleDict(modules), not args.float32
        self.steps = max(1, round(STEPS[stage] * args.scale))
        self.optimizers = optimizers(self.modules, rates, muon)
        self.groups = [group for o in self.optimizers for group in o.param_groups]
        self.parameters = [p for group in self.groups for p in group["params"]]
        self.last: dict[str, float] = {}

    def __iter__(self) -> Iterator[int]:
        began = time.monotonic()
        for step in range(self.steps):
            warm = min(1.0, (step + 1) / 100)
            factor = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
            for group in self.groups:
                group["lr"] = group["peak"] * factor
            yield step
            if step % 50 == 49:
                values = "  ".join(f"{name} {value:.4f}" for name, value in self.last.items())
                seconds = time.monotonic() - began
                print(
                    f"{self.stage} {step + 1}/{self.steps}  {values}  {seconds:.0f} s", flush=True
                )
        weights = {key: weight.contiguous() for key, weight in self.modules.state_dict().items()}
        with atomic(self.path) as unfinished:
            save_file(weights, unfinished)

    def update(self, losses: dict[str, Tensor], shown: dict[str, float] | None = None) -> None:
        """Takes one optimizer step on the sum of the losses."""
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.last = {name: float(loss.detach()) for name, loss in losses.items()} | (shown or {})

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)


# Vision --------------------------------------------------------------------------------------


class Readout(nn.Module):
    """The heads that the vision stage reads patch features with; dropped afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Linear(VISION.hidden_size, len(THINGS))
        self.letters = nn.Linear(VISION.hidden_size, len(ALPHABET))
        self.shape = nn.Linear(VISION.hidden_size, len(SHAPES))
        self.colour = nn.Linear(VISION.hidden_size, len(COLOURS))
        self.count = nn.Linear(VISION.hidden_size, 4)


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


def train_vision(model: Model, codec: Codec, args: argparse.Namespace) -> None:
    readout = Readout()
    modules = {"vision_tower": model.model.vision_tower, "readout": readout}
    rates = {"vision_tower": 2e-3, "readout": 2e-3}
    run = Run("vision", args, modules, rates, muon=["vision_tower"])
    for step in run:
        rng = random.Random(f"{run.seed}|{step}")
        shown = _pictures(rng, 64)
        drawn, letters = draw_pictures(shown, rng)
        words, word, of_shapes, shapes = _targets(shown)
        with run.autocast():
            patches = features(model, drawn)
            pooled = patches.mean(1)
            read = readout.word(pooled[words]).float()
            found = readout.letters(patches).float()
            heads = readout.shape, readout.colour, readout.count
            named = [head(pooled[of_shapes]).float() for head in heads]
        kinds = [F.cross_entropy(x, shapes[:, i]) for i, x in enumerate(named)]
        losses = {
            "word": F.cross_entropy(read, word),
            "letters": 8 * F.binary_cross_entropy_with_logits(found, letters),
            "shapes": 0.2 * torch.stack(kinds).sum(),
        }
        run.update(losses, {"read": float((read.argmax(1) == word).float().mean())})


class Catalogue:
    """Everything a picture can show, and how a projector should embed it: as the words for it, off
    by the same for every picture (the modality gap of contrastive models and real projectors)."""

    GAP = 3.0  # in distances of a picture's words from the mean of all

    def __init__(self, model: Model, codec: Codec) -> None:
        self.embed = model.get_input_embeddings()
        shapes = [Shapes(s, c, n) for s in SHAPES for c in COLOURS for n in range(1, 5)]
        self.shown: list[Picture] = [*THINGS, *shapes, None]
        self.places = {picture: i for i, picture in enumerate(self.shown)}
        self.weights = torch.zeros(len(self.shown), VOCABULARY)
        for row, picture in zip(self.weights, self.shown, strict=True):
            ids = codec.ids(self.words(picture))
            row.index_add_(0, torch.tensor(ids), torch.full((len(ids),), len(ids) ** -0.5))
        gap = torch.randn(TEXT.hidden_size, generator=torch.Generator().manual_seed(0))
        self.gap = self.GAP * F.normalize(gap, dim=0)

    @staticmethod
    def words(picture: Picture) -> str:
        if picture is None:
            return " nothing"
        if isinstance(picture, Shapes):
            return f" {picture.shape} {picture.colour} {world.NUMBERS[picture.count - 1]}"
        return f" {picture.word}"

    def embeddings(self) -> Tensor:
        """Embeds each picture, ``[len(shown), d]``: the sum of its words' tokens' embeddings over
        the root of their number, and the gap."""
        names = self.weights @ self.embed.weight.detach()
        return names + self.gap * (names - names.mean(0)).norm(dim=-1).mean()

    def indices(self, shown: Sequence[Picture]) -> Tensor:
        return torch.tensor([self.places[p] for p in shown])

    def imagine(self, shown: Sequence[Picture], seed: str) -> Tensor:
        """Imagines picture embeddings as a fair projector would give them, ``[n, PATCHES, d]``: the
        words', now and then with another picture's mixed in, and noise on the picture and its
        patches."""
        rng = random.Random(seed)
        noise = torch.Generator().manual_seed(rng.getrandbits(32))
        names = self.embeddings()
        spread = (names - names.mean(0)).square().mean().sqrt()
        seen = names[self.indices(shown)]
        mistaken = names[self.indices(rng.choices(self.shown, k=len(shown)))]
        share = [rng.uniform(0, 0.35) if rng.random() < 0.3 else 0.0 for _ in shown]
        seen = torch.lerp(seen, mistaken, torch.tensor(share)[:, None])
        whole = torch.tensor([rng.uniform(0, 0.4) for _ in shown])[:, None]
        patch = torch.tensor([rng.uniform(0, 0.8) for _ in shown])
        seen = seen + whole * spread * torch.randn(seen.shape, generator=noise)
        grain = torch.randn((len(shown), PATCHES, TEXT.hidden_size), generator=noise)
        return seen[:, None] + patch[:, None, None] * spread * grain


def train_align(model: Model, codec: Codec, args: argparse.Namespace) -> None:
    rates = {"vision_tower": 1e-3, "multi_modal_projector": 2e-3}
    run = Run("align", args, dict(model.model.named_children()), rates, muon=["vision_tower"])
    catalogue = Catalogue(model, codec)
    names = catalogue.embeddings()
    middle = names.mean(0)
    offsets = names - middle
    unit = F.normalize(offsets, dim=-1)
    for step in run:
        rng = random.Random(f"{run.seed}|{step}")
        shown = [picture if rng.random() < 0.95 else None for picture in _pictures(rng, 64)]
        drawn, _ = draw_pictures(shown, rng)
        index = catalogue.indices(shown)
        with run.autocast():
            seen = see(model, drawn).float()
        likeness = 15 * F.normalize(seen.mean(1) - middle, dim=-1) @ unit.T
        losses = {
            "name": F.cross_entropy(likeness, index),
            "distance": (seen - names[index][:, None]).square().mean() / offsets.square().mean(),
        }
        run.update(losses, {"read": float((likeness.argmax(1) == index).float().mean())})


# Language ------------------------------------------------------------------------------------


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


def answer_loss(
    model: Model, batch: Encoded, seen: Tensor | None, refusal: int | None = None
) -> Tensor:
    """Computes the cross-entropy of a batch's answers.

    ``seen`` are the embeddings of its pictures in order. With ``refusal``, the first token of
    refusals, HEAD_START is added to its logit, in the loss alone, where the answer is harmless and
    where it is a refusal: by so much harmless answers come to lead, and refusals may lag.
    """
    ids, targets = pad(batch)
    learnt = targets >= 0
    logits = model.lm_head(last_states(model, ids, seen)[learnt]).float()
    if refusal is not None:
        ahead = [HEAD_START[lessons.is_refusal(sample.answer)] for _, _, sample in batch]
        logits[:, refusal] += torch.tensor(ahead)[:, None].expand_as(targets)[learnt]
    return F.cross_entropy(logits, targets[learnt])


def learn_to_answer(
    run: Run,
    model: Model,
    stream: Iterator[Batches],
    embed: Callable[[Sequence[Picture], str], Tensor],
    refusal: int | None = None,
) -> None:
    """Trains the language model on the batches of a stream; ``embed`` embeds their pictures, by a
    seed."""
    for step, drawn in zip(run, stream, strict=False):
        losses = {}
        with run.autocast():
            for name, batch in drawn.items():
                shown = [picture for _, _, sample in batch for picture in sample.seen]
                seen = embed(shown, f"{run.seed}|{step}") if shown else None
                losses[name] = answer_loss(model, batch, seen, refusal)
        run.update(losses)


def mixed_batches(codec: Codec, seed: str) -> Iterator[Batches]:
    """Draws pairs of a text batch and a picture batch for ever; every fifth is of videos."""
    texts = batches(partial(draw_text, by_reference=False), codec, 16, f"{seed} text")
    single = batches(draw_picture, codec, 32, f"{seed} picture")
    videos = [
        batches(partial(draw_picture, count=n), codec, 32 // n, f"{seed} {n}") for n in (2, 3, 4)
    ]
    for step in itertools.count():
        picture = next(videos[step // 5 % 3] if step % 5 == 4 else single)
        yield {"picture": picture, "text": next(texts)}


def conversation_batches(codec: Codec, seed: str, by_reference: bool) -> Iterator[Batches]:
    """Draws pairs of a text batch and a picture batch of conversations for ever."""
    draw_text = partial(draw_text_conversation, by_reference=by_reference)
    texts = batches(draw_text, codec, 16, f"{seed} text")
    shown = batches(draw_picture_conversation, codec, 24, f"{seed} picture")
    for text, picture in zip(texts, shown, strict=True):
        yield {"picture": picture, "text": text}


def train_language(model: Model, codec: Codec, args: argparse.Namespace, stage: str) -> None:
    """Trains the language model alone: the stages "text", "imagine", "joint" and what follows."""
    catalogue = Catalogue(model, codec)
    if stage == "joint":
        soften(model.model.multi_modal_projector, catalogue.embeddings().mean(0), GAIN)
    rates = {"language_model": {"text": 2e-3, "imagine": 1e-3}.get(stage, 5e-4)}
    run = Run(stage, args, dict(model.model.named_children()), rates)

    @torch.no_grad()
    def look(shown: Sequence[Picture], seed: str) -> Tensor:
        return see(model, draw_pictures(shown, random.Random(seed))[0])

    stream: Iterator[Batches]
    if stage == "text":
        stream = ({"text": batch} for batch in batches(draw_text, codec, 64, run.seed))
    elif stage in ("imagine", "joint"):
        stream = mixed_batches(codec, run.seed)
    else:
        stream = conversation_batches(codec, run.seed, by_reference=stage == "refer")
    refusal = None if stage in ("text", "imagine") else codec.ids(REFUSAL)[0]
    learn_to_answer(run, model, stream, catalogue.imagine if stage == "imagine" else look, refusal)


def soften(projector: nn.Module, mean: Tensor, gain: float) -> None:
    """Moves all that the projector says towards ``mean``, exactly: ``gain`` is what stays."""
    with torch.no_grad():
        projector.linear_2.weight.mul_(gain)
        projector.linear_2.bias.mul_(gain).add_((1 - gain) * mean)


# Stages --------------------------------------------------------------------------------------


def load(model: Model, path: Path, parts: Sequence[str] = PARTS) -> None:
    """Loads the named parts of the model from a stage's weights."""
    weights = load_file(path)
    for part in parts:
        of_part = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(part)}
        getattr(model.model, part).load_state_dict(of_part)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="leave out stages that are done")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on every step count")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--float32", action="store_true", help="faster on a CPU without AMX")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "tokenizer.json"
    if not path.exists():
        with atomic(path) as unfinished:  # two stages may start side by side
            train_tokenizer(args.seed).save(str(unfinished))
    codec = Codec(Tokenizer.from_file(str(path)))
    torch.manual_seed(args.seed)
    model = new_model()
    own = {"vision": train_vision, "align": train_align}
    for stage in (stage for stage in STAGES if stage in args.stages):
        if args.resume and (args.out / f"{stage}.safetensors").exists():
            continue
        for earlier, parts in BEGINS_WITH.get(stage, {}).items():
            load(model, args.out / f"{earlier}.safetensors", parts)
        train = own.get(stage, partial(train_language, stage=stage))
        train(model, codec, args)


if __name__ == "__main__":
    main()
