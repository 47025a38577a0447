"""``python -m mars_gguf.convert.parity MODEL.gguf CHECKPOINT``: measure one model through both
extractors and print how they agree, as a Markdown table.

Of the same weights (an F32 GGUF against float32) the two agree up to rounding; a quantized GGUF
against its float32 checkpoint shows what quantization does to hidden states and coordinates.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mars_gguf.console import command
from mars_gguf.convert.card import PARITY, split_parity
from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, chosen
from mars_gguf.convert.extractor import Extractor, observe
from mars_gguf.convert.geometry import Array
from mars_gguf.convert.pipeline import Measurement, measure
from mars_gguf.convert.probes import neutral_probes
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import ContrastPrompts, Rows, read_contrast
from mars_gguf.convert.splits import split_prompts
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic
from mars_gguf.markdown import table
from mars_gguf.options import (
    add_checkpoint_arguments,
    add_device_arguments,
    add_prompt_arguments,
    add_template_arguments,
    add_threads_argument,
    layer_range,
    option,
    positive,
    switch,
)


@dataclass(frozen=True)
class Parity:
    """Tells how two extractors of one model agree.

    names: of the two.
    cosine: by modality, cosine of the two hidden states after every block, [n, L].
    t: coordinates t of held-out text prompts by the two, each by its own geometry, [2, n, L].
    measurements, seconds: what each selected, and how long that took.
    """

    names: tuple[str, str]
    cosine: dict[str, Array]
    t: Array
    measurements: list[Measurement]
    seconds: list[float]

    @property
    def layers(self) -> tuple[int, int]:
        """The selected blocks."""
        a, b = self.measurements
        return a.vector.layer, b.vector.layer

    def table(self) -> str:
        """Writes the whole as Markdown."""
        difference = np.abs(self.t[0] - self.t[1])
        compared = ", ".join(f"{len(c)} {m} prompts" for m, c in self.cosine.items())
        columns = [f"cosine, {m}" for m in self.cosine]
        seconds = [f"{seconds:.1f}" for seconds in self.seconds]
        rows = []
        for block in range(difference.shape[1]):
            cosines = [f"{cosine[:, block].min():.6f}" for cosine in self.cosine.values()]
            apart = difference[:, block]
            name = f"**{block}**" if block in self.layers else str(block)
            rows.append([name, *cosines, f"{apart.mean():.4f}", f"{apart.max():.4f}"])
        lines = [
            f"{PARITY}: {self.names[0]} and {self.names[1]}",
            "",
            f"Cosine of the hidden states of one prompt, the least over {compared}; difference of "
            f"t, the mean and the largest over {len(difference)} held-out text prompts.",
            "",
            *table(["block", *columns, "difference of t", "largest"], rows),
            "",
            *table(["", *self.names], [["selected block", *self.layers], ["seconds", *seconds]]),
        ]
        return "\n".join(lines) + "\n"


def compare(
    a: Extractor,
    b: Extractor,
    sets: PromptSets,
    calibration: Calibration,
    *,
    names: tuple[str, str] = ("a", "b"),
    n_prompts: int = 32,
    progress: bool = False,
) -> Parity:
    """Measures with both extractors, and compares hidden states on ``n_prompts`` of each modality.

    Raises MarsError if the two are not of one model.
    """
    if differing := a.fingerprint.differing(b.fingerprint, force=True):
        lines = [f"{names[0]} and {names[1]} are two models, expected one:"]
        for key in differing:
            lines.append(f"{key}: {getattr(a.fingerprint, key)} and {getattr(b.fingerprint, key)}")
        raise MarsError("\n  ".join(lines))
    measurements, seconds = [], []
    for extractor, name in ((a, names[0]), (b, names[1])):
        began = time.perf_counter()
        source = {"backend": name}
        measurements.append(measure(extractor, sets, calibration, source=source, progress=progress))
        seconds.append(time.perf_counter() - began)
    splits = split_prompts(sets.contrast, sets.media, sets.contexts, calibration.seed)
    pairs = zip(splits.harmful.certify, splits.harmless.certify, strict=False)
    samples = {"text": [p for pair in pairs for p in pair]}
    samples |= {m: split.certify for m, split in sets.media.items()}
    cosine = {}
    for m, prompts in samples.items():
        some = prompts[:n_prompts]
        cosine[m] = _cosine(*(observe(x, some, lambda n: None).states for x in (a, b)))
    texts = ("harmful text", "neutral text")
    t = np.stack([np.concatenate([m.coordinates[s] for s in texts]) for m in measurements])
    return Parity(names, cosine, t, measurements, seconds)


def _cosine(a: Rows, b: Rows) -> Array:
    lengths = np.linalg.norm(a.astype(np.float64), axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(np.einsum("nld,nld->nl", a, b, dtype=np.float64) / lengths)


def read_card(card: Path) -> str:
    """Reads the text of a vector's card. Raises MarsError."""
    try:
        return card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MarsError(
            f"{card}: cannot be read as a card ({error}). mars_gguf.convert writes one beside the "
            "vector."
        ) from error


def append_to_card(card: Path, table: str) -> None:
    """Puts the table at the end of a vector's card, in place of an older one."""
    text, _ = split_parity(read_card(card))
    with atomic(card) as file:
        file.write_text(text + table, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="mars_gguf.convert.parity", description=__doc__)
    p.add_argument("gguf", metavar="MODEL.gguf")
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="transformers directory or hub id")
    option(p, "--mmproj FILE", "compare on pictures too")
    option(p, "--pairs N", "use the first N prompts of each set", positive)
    add_prompt_arguments(p, probes=32)
    add_checkpoint_arguments(p, dtype="float32", batch_size=32)
    add_device_arguments(p)
    add_threads_argument(p)
    add_template_arguments(p)
    option(p, "--card FILE", "append the table to this card", Path)
    switch(p, "-q --quiet", "no progress bars")
    args = p.parse_args(argv)
    with command():
        if args.card is not None:
            read_card(args.card)  # now, not after an hour of measuring
        table = run(args).table()
        print(table)
        if args.card is not None:
            append_to_card(args.card, table)


def run(args: argparse.Namespace) -> Parity:
    """Compares as the command line says. Raises MarsError."""
    from mars_gguf.convert.extract_gguf import GgufExtractor
    from mars_gguf.convert.extract_transformers import TransformersExtractor

    calibration = Calibration(layers=layer_range(args.layers))
    contrast = read_contrast(args.harmful, args.harmless)
    if args.neutral_media is not None and args.mmproj is None:
        raise MarsError("--neutral-media: without --mmproj text alone is compared")
    if args.reasoning in ("thought", "answer"):
        raise MarsError(
            f"--reasoning {args.reasoning}: checkpoints are read without thoughts, and so is the "
            "GGUF. Leave it out."
        )
    contrast = ContrastPrompts(contrast.harmful[: args.pairs], contrast.harmless[: args.pairs])
    sees = args.mmproj is not None
    media = {}
    if sees:
        own = args.neutral_media
        media = neutral_probes(args.probes, args.image_size, 0, media=own, alone=True)
    given = vars(args)
    ours = chosen(GgufOptions, given, reasoning="off", rpc_servers=args.rpc, n_threads=args.threads)
    theirs = chosen(CheckpointOptions, given)
    with (
        closing(GgufExtractor(args.gguf, args.mmproj, **vars(ours))) as quantized,
        closing(TransformersExtractor(args.checkpoint, theirs, images=sees)) as checkpoint,
    ):
        if sees and not checkpoint.sees_images:
            raise MarsError(
                f"{args.checkpoint}: this model sees no pictures, but --mmproj compares on some"
            )
        names = (
            f"llama.cpp {quantized.fingerprint.quantization}",
            f"transformers {str(checkpoint.checkpoint.model.dtype).removeprefix('torch.')}",
        )
        sets, progress = PromptSets(contrast, media), not args.quiet
        return compare(quantized, checkpoint, sets, calibration, names=names, progress=progress)


if __name__ == "__main__":
    main()
