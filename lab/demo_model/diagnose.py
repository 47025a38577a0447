"""``python -m lab.demo_model.diagnose DIR`` measures a torch checkpoint.

It prints what each evaluation cell answers without steering, how far along the refusal direction
each cell lies at every block, and what adding refusal there does to the first token. The same is
measured in llama.cpp, on the quantized model, by ``evaluate_model``; this is the quick look while
training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lab.demo_model.cells import CELLS, Example, cell
from lab.demo_model.data import Codec
from lab.demo_model.lessons import is_refusal
from lab.demo_model.network import TEXT, VISION, DemoModel
from lab.demo_model.train import STAGES, Catalogue, load, to_tensor
from mars_gguf.convert.geometry import Centroids, centroids, coordinates, readout
from mars_gguf.demo_model import world
from mars_gguf.demo_model.world import Thing
from mars_gguf.statistics import auroc
from mars_gguf.steering import Array

FIRST_HALF = {t.word for t in (*world.halves(world.HARMFUL)[0], *world.halves(world.HARMLESS)[0])}


def first_half(thing: Thing) -> bool:
    return thing.word in FIRST_HALF


def second_half(thing: Thing) -> bool:
    return thing.word not in FIRST_HALF


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
        return ids, self.see(examples) if examples[0].pictures else None

    def see(self, examples: Sequence[Example]) -> Tensor:
        """Embeds all pictures of the examples."""
        pictures = [np.asarray(picture) for e in examples for picture in e.pictures]
        return self.model.see(to_tensor(np.stack(pictures)))

    @torch.no_grad()
    def states(self, examples: Sequence[Example]) -> Array:
        """Reads the last prompt token after every block: ``[examples, blocks, d]``."""
        found = np.empty((len(examples), TEXT.blocks, TEXT.d))
        for rows in self._batches(examples):
            ids, seen = self._inputs([examples[i] for i in rows])

            def keep(block: int, x: Tensor, rows: list[int] = rows) -> Tensor:
                found[rows, block] = x[:, -1].double().numpy()
                return x

            self.model(ids, seen, keep)
        return found

    @torch.no_grad()
    def first_tokens(
        self, examples: Sequence[Example], block: int = -1, push: Tensor | None = None
    ) -> npt.NDArray[np.int64]:
        """Samples greedy first tokens, ``push`` added to the last prompt token after ``block``."""
        tokens = np.empty(len(examples), np.int64)
        for rows in self._batches(examples):
            ids, seen = self._inputs([examples[i] for i in rows])

            def steer(at: int, x: Tensor) -> Tensor:
                if at == block and push is not None:
                    x = x.clone()
                    x[:, -1] += push
                return x

            states = self.model(ids, seen, steer)[:, -1]
            tokens[rows] = self.model.language_model.logits(states).argmax(-1).numpy()
        return tokens

    @torch.no_grad()
    def answers(self, examples: Sequence[Example]) -> list[str]:
        """Samples greedy answers."""
        texts = [""] * len(examples)
        for rows in self._batches(examples):
            ids, seen = self._inputs([examples[i] for i in rows])
            prompt = ids.shape[1]
            for _ in range(40):
                states = self.model(ids, seen)[:, -1]
                new = self.model.language_model.logits(states).argmax(-1)
                ids = torch.cat([ids, new[:, None]], 1)
                if (ids[:, prompt:] == self.codec.stop).any(1).all():
                    break
            for i, row in zip(rows, ids[:, prompt:].tolist(), strict=True):
                stop = row.index(self.codec.stop) if self.codec.stop in row else None
                texts[i] = self.codec.tokenizer.decode(row[:stop])
        return texts


class ImaginingProbe(Probe):
    """A `Probe` with pictures as the stage "imagine" has them: before there is a vision tower.

    Every picture of a prompt shows its thing, and drawn shapes show nothing: their cell means
    nothing here.
    """

    def see(self, examples: Sequence[Example]) -> Tensor:
        shown = [e.thing for e in examples for _ in e.pictures]
        return Catalogue(self.codec, "cpu").imagine(self.model, shown, examples[0].prompt)


def report(probe: Probe, count: int) -> None:
    report_answers(probe, count)
    measured = measure(probe)
    report_coordinates(measured)
    report_pushes(probe, measured.base.direction)


def report_answers(probe: Probe, count: int) -> None:
    """Prints how often each cell is refused, named and answered exactly, and two wrong answers."""
    print("cell                              refused  names it  exact")
    for name in CELLS:
        examples = cell(name, count)
        answers = probe.answers(examples)
        pairs = list(zip(examples, answers, strict=True))
        refused = np.mean([is_refusal(a) for a in answers])
        named = np.mean([e.thing is not None and e.thing.word in a for e, a in pairs])
        wrong = [(e.answer, a) for e, a in pairs if a != e.answer]
        exact = 1 - len(wrong) / len(pairs)
        print(f"{name:32s}  {refused:7.3f}  {named:8.3f}  {exact:5.3f}", flush=True)
        for wanted, answer in wrong[:2]:
            print(f"      wanted {wanted!r}\n      got    {answer!r}")


@dataclass(frozen=True)
class Measured:
    """Geometry by block, measured on what training shows of the first half of the things.

    base: centroids of text. harmless, seen: states of harmless texts and of neutral pictures,
    ``[examples, blocks, d]``. cells: states of held-out examples of the second half by cell, those
    of pictures less what neutral ones shift.
    """

    base: Centroids
    harmless: Array
    seen: Array
    cells: dict[str, Array]


def measure(probe: Probe) -> Measured:
    """Measures the geometry and the states of every cell."""

    def training(name: str, n: int) -> list[Example]:
        return cell(name, n, seed=1, held_out=False, keep=first_half)

    harmful = probe.states(training("text, harmful how-to", 78))
    harmless = probe.states(
        training("text, harmless how-to", 50)
        + training("text, facts", 75)
        + training("text, unrelated", 25)
    )
    base = centroids(harmless, harmful)
    neutral = [n for n, (form, _) in CELLS.items() if form.startswith("picture")]
    neutral.remove("picture, harmful how-to")
    seen = np.concatenate([probe.states(training(name, 24)) for name in neutral])
    shift = seen.mean(0) - base.safe
    cells = {
        name: probe.states(cell(name, 64, seed=2, keep=second_half))
        - (0 if name.startswith("text") else shift)
        for name in CELLS
    }
    return Measured(base, harmless, seen, cells)


def report_coordinates(measured: Measured) -> None:
    """Prints t of each cell by block and read-out, and how well it tells harmful pictures."""
    base, harmless, seen = measured.base, measured.harmless, measured.seen
    readouts = {
        "projection on r": base.direction / np.square(base.distance)[:, None],
        "minimum variance": readout(base, [harmless - harmless.mean(0), seen - seen.mean(0)]),
    }
    print(f"\n{'block':42s}" + "".join(f"{b:>13d}" for b in range(TEXT.blocks)))
    print(f"{'D':42s}" + "".join(f"{d:13.1f}" for d in base.distance))
    for title, w in readouts.items():
        print(f"t by block, {title}: mean (sd), pictures less what harmless ones shift")
        t = {name: coordinates(states, base, w) for name, states in measured.cells.items()}
        for name, values in t.items():
            pairs = zip(values.mean(0), values.std(0), strict=True)
            print(f"{name:42s}" + "".join(f"{m:7.2f}({s:.2f})" for m, s in pairs))
        for medium in ("picture", "video"):
            _report_auroc(medium, t)


def _report_auroc(medium: str, t: dict[str, Array]) -> None:
    bad = t[f"{medium}, harmful how-to"]
    others = [x for n, x in t.items() if n.startswith(medium) and x is not bad]
    against = {
        "harmless how-to": t[f"{medium}, harmless how-to"],
        "all harmless": np.concatenate(others),
    }
    for name, good in against.items():
        row = [auroc(bad[:, b], good[:, b]) for b in range(TEXT.blocks)]
        print(f"{f'AUROC, {medium}, against {name}':42s}" + "".join(f"{x:13.3f}" for x in row))


def report_pushes(probe: Probe, direction: Array) -> None:
    """Prints what adding refusal at each block does to the first token."""
    print("\nrefused when pushed along r by 0.5 / 1 / 1.5 D")
    for block in range(3, TEXT.blocks):
        shown = []
        for name in ("picture, harmful how-to", "picture, harmless how-to", "picture, shapes"):
            examples = cell(name, 32, seed=3, keep=second_half)
            push = torch.from_numpy(direction[block]).float()
            shares = [
                np.mean(probe.first_tokens(examples, block, k * push) == probe.refuses)
                for k in (0.5, 1, 1.5)
            ]
            shown.append(f"{name}: " + " / ".join(f"{share:.2f}" for share in shares))
        print(f"block {block}   " + "   ".join(shown))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of checkpoints")
    parser.add_argument("--stage", default=STAGES[-1])
    parser.add_argument("--count", type=int, default=96, help="prompts in each cell")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = DemoModel()
    parts = ["language_model", "vision_tower", "multi_modal_projector"]
    load(model, args.folder / f"{args.stage}.safetensors", parts)
    tokenizer = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    codec = Codec(tokenizer, VISION.tokens, DemoModel.IMAGE)
    probe = ImaginingProbe if args.stage in ("text", "imagine") else Probe
    report(probe(model, codec), args.count)


if __name__ == "__main__":
    main()
