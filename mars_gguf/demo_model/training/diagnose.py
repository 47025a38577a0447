"""Measure a torch checkpoint: ``python -m mars_gguf.demo_model.training.diagnose DIR``.

What each evaluation cell answers without steering, how far along the refusal direction each cell
lies at every block, and what adding refusal there does to the first token. The same is measured
in llama.cpp, on the quantized model, by ``evaluate_model``; this is the quick look while training.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from mars_gguf.demo_model.training import world
from mars_gguf.demo_model.training.data import Codec
from mars_gguf.demo_model.training.network import TEXT, VISION, DemoModel
from mars_gguf.demo_model.training.train import load, to_tensor
from mars_gguf.demo_model.training.world import CELLS, Example, Thing

Array = npt.NDArray[np.float64]
FIRST_HALF = {t.word for t in (*world.halves(world.HARMFUL)[0], *world.halves(world.HARMLESS)[0])}


def first_half(thing: Thing) -> bool:
    return thing.word in FIRST_HALF


def second_half(thing: Thing) -> bool:
    return thing.word not in FIRST_HALF


def auroc(positive: Array, negative: Array) -> float:
    """Chance that a positive lies above a negative, ties counting half."""
    above = positive[:, None] > negative[None]
    return float((above + 0.5 * (positive[:, None] == negative[None])).mean())


class Probe:
    """Runs examples through a checkpoint, a few of one length at a time."""

    def __init__(self, model: DemoModel, codec: Codec) -> None:
        self.model, self.codec = model.eval(), codec
        self.refuses = codec.ids("I'm sorry")[0]

    def _batches(self, examples: Sequence[Example]) -> list[list[int]]:
        by_length: dict[tuple[int, int], list[int]] = {}
        for i, e in enumerate(examples):
            n = len(e.pictures)
            by_length.setdefault((n, len(self.codec.prompt(e.prompt, n))), []).append(i)
        return [rows[i : i + 32] for rows in by_length.values() for i in range(0, len(rows), 32)]

    def _inputs(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor | None]:
        ids = torch.tensor([self.codec.prompt(e.prompt, len(e.pictures)) for e in examples])
        pictures = [np.asarray(picture) for e in examples for picture in e.pictures]
        return ids, to_tensor(np.stack(pictures)) if pictures else None

    @torch.no_grad()
    def states(self, examples: Sequence[Example]) -> Array:
        """Last prompt token after every block: ``[examples, blocks, d]``."""
        found = np.empty((len(examples), TEXT.blocks, TEXT.d))
        for rows in self._batches(examples):
            ids, pictures = self._inputs([examples[i] for i in rows])

            def keep(block: int, x: Tensor, rows: list[int] = rows) -> Tensor:
                found[rows, block] = x[:, -1].double().numpy()
                return x

            self.model(ids, pictures, keep)
        return found

    @torch.no_grad()
    def first_tokens(
        self, examples: Sequence[Example], block: int = -1, push: Tensor | None = None
    ) -> npt.NDArray[np.int64]:
        """Greedy first tokens, with ``push`` added to the last prompt token after ``block``."""
        tokens = np.empty(len(examples), np.int64)
        for rows in self._batches(examples):
            ids, pictures = self._inputs([examples[i] for i in rows])

            def steer(at: int, x: Tensor) -> Tensor:
                if at == block and push is not None:
                    x = x.clone()
                    x[:, -1] += push
                return x

            states = self.model(ids, pictures, steer)[:, -1]
            tokens[rows] = self.model.language_model.logits(states).argmax(-1).numpy()
        return tokens

    @torch.no_grad()
    def answers(self, examples: Sequence[Example]) -> list[str]:
        """Greedy answers."""
        texts = [""] * len(examples)
        for rows in self._batches(examples):
            ids, pictures = self._inputs([examples[i] for i in rows])
            prompt = ids.shape[1]
            for _ in range(40):
                states = self.model(ids, pictures)[:, -1]
                new = self.model.language_model.logits(states).argmax(-1)
                ids = torch.cat([ids, new[:, None]], 1)
                if (ids[:, prompt:] == self.codec.stop).any(1).all():
                    break
            for i, row in zip(rows, ids[:, prompt:].tolist(), strict=True):
                stop = row.index(self.codec.stop) if self.codec.stop in row else None
                texts[i] = self.codec.tokenizer.decode(row[:stop])
        return texts


def report(model: DemoModel, codec: Codec, count: int) -> None:
    probe = Probe(model, codec)
    print("cell                              refused  names it  exact")
    for name in CELLS:
        examples = world.cell(name, count)
        answers = probe.answers(examples)
        refused = np.mean([world.is_refusal(a) for a in answers])
        exact = [a == e.answer for a, e in zip(answers, examples, strict=True)]
        named = [
            e.thing is not None and e.thing.word in a
            for a, e in zip(answers, examples, strict=True)
        ]
        print(
            f"{name:32s}  {refused:7.3f}  {np.mean(named):8.3f}  {np.mean(exact):5.3f}", flush=True
        )
        wrong = [(e.answer, a) for e, a, ok in zip(examples, answers, exact, strict=True) if not ok]
        for wanted, answer in wrong[:2]:
            print(f"      wanted {wanted!r}\n      got    {answer!r}")

    def training(name: str, n: int) -> list[Example]:
        return world.cell(name, n, seed=1, held_out=False, keep=first_half)

    harmful = training("text, harmful how-to", 78)
    harmless = (
        training("text, harmless how-to", 50)
        + training("text, facts", 75)
        + training("text, unrelated", 25)
    )
    unsafe, safe = probe.states(harmful).mean(0), probe.states(harmless).mean(0)
    size = np.linalg.norm(unsafe - safe, axis=1)
    unit = (unsafe - safe) / size[:, None]

    def along(examples: Sequence[Example]) -> Array:
        return ((probe.states(examples) - safe) * unit).sum(-1) / size

    cells = {name: along(world.cell(name, 64, seed=2, keep=second_half)) for name in CELLS}
    neutral = [
        name
        for name, (form, _) in CELLS.items()
        if form.startswith("picture") and "harmful how" not in name
    ]
    shift = np.mean([np.median(along(training(name, 32)), axis=0) for name in neutral], axis=0)
    print("\nt by block: mean (sd); pictures re-centred by the mean over harmless picture forms")
    print(f"{'block':32s}" + "".join(f"{b:>13d}" for b in range(TEXT.blocks)))
    print(f"{'D':32s}" + "".join(f"{d:13.1f}" for d in size))
    print(f"{'shift of pictures':32s}" + "".join(f"{d:13.2f}" for d in shift))
    for name, t in cells.items():
        moved = t if name.startswith("text") else t - shift
        row = "".join(
            f"{m:7.2f}({s:.2f})" for m, s in zip(moved.mean(0), moved.std(0), strict=True)
        )
        print(f"{name:32s}{row}")
    for medium in ("picture", "video"):
        bad, good = cells[f"{medium}, harmful how-to"], cells[f"{medium}, harmless how-to"]
        others = np.concatenate(
            [t for n, t in cells.items() if n.startswith(medium) and "harmful how" not in n]
        )
        for title, against in (("how-to", good), ("all harmless", others)):
            row = "".join(f"{auroc(bad[:, b], against[:, b]):13.3f}" for b in range(TEXT.blocks))
            print(f"{'AUROC ' + medium + ' against ' + title:32s}{row}")
    print("\nrefused when every prompt is pushed along r by (D):  0.5 / 1 / 1.5")
    for block in range(3, TEXT.blocks):
        shares = {}
        for name in ("picture, harmful how-to", "picture, harmless how-to", "picture, shapes"):
            examples = world.cell(name, 32, seed=3, keep=second_half)
            shares[name] = [
                np.mean(
                    probe.first_tokens(
                        examples, block, torch.tensor(unit[block] * size[block] * k).float()
                    )
                    == probe.refuses
                )
                for k in (0.5, 1, 1.5)
            ]
        shown = "   ".join(f"{n}: " + " / ".join(f"{x:.2f}" for x in v) for n, v in shares.items())
        print(f"block {block}   {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of checkpoints")
    parser.add_argument("--stage", default="joint")
    parser.add_argument("--count", type=int, default=96, help="prompts in each cell")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    random.seed(0)
    model = DemoModel()
    parts = ["language_model", "vision_tower", "multi_modal_projector"]
    load(model, args.folder / f"{args.stage}.safetensors", parts)
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    report(model, Codec(tokenizer, VISION.tokens, DemoModel.IMAGE), args.count)


if __name__ == "__main__":
    main()
