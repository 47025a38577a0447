"""The card that goes with a vector file."""

from __future__ import annotations

import numpy as np

from mars_gguf.convert.pipeline import Conversion
from mars_gguf.vectors import Vector
from mars_gguf.vectors.describe import describe

PARITY = "## Parity"  # the heading that mars_gguf.convert.parity puts its table under


def card(conversion: Conversion, name: str, sha256: str, parity: str = "") -> str:
    """The Markdown card of the vector file called ``name`` with this hash: what was measured, on
    what, and how to use it. ``parity``: a table of mars_gguf.convert.parity to end with."""
    sections = [
        _head(conversion.vector, name),
        _warnings(conversion.warnings),
        _coordinates(conversion),
        _gate(conversion.vector),
        _blocks(conversion),
        _values(conversion.vector, sha256),
    ]
    text = "\n".join(line for section in sections for line in section)
    return text + ("\n" + parity if parity else "")


def split_parity(text: str) -> tuple[str, str]:
    """A card's text without its parity table, ready to append one, and the table ("": none)."""
    text, heading, table = text.partition(f"\n{PARITY}: ")
    return text.rstrip() + "\n\n", heading.lstrip() + table


def model_name(vector: Vector) -> str:
    """What the model is called, as far as that is known."""
    return str(vector.model.name or vector.source.get("model") or vector.model.architecture)


def _head(vector: Vector, name: str) -> list[str]:
    mmproj = "--mmproj MMPROJ.gguf " if vector.modalities != ["text"] else ""
    return [
        f"# {name}",
        "",
        f"A refusal-steering vector for **{model_name(vector)}** "
        f"({vector.model.quantization or vector.source['backend']}), made by "
        f"{vector.source['tool']}.",
        "",
        "```",
        f"python -m mars_gguf.chat --model MODEL.gguf {mmproj}--vector {name}",
        "```",
        "",
    ]


def _warnings(warnings: list[str]) -> list[str]:
    return ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""] if warnings else []


def _coordinates(conversion: Conversion) -> list[str]:
    layer = conversion.vector.layer
    lines = [
        "## Where prompts lie",
        "",
        f"Coordinate t at block {layer} before re-centering: 0 is the safe, 1 the unsafe centroid.",
        "",
        "| set | mean t | spread |",
        "| --- | --- | --- |",
    ]
    for group, t in conversion.coordinates.items():
        width = f"{t[:, layer].std():.3f}" if len(t) > 1 else ""
        lines.append(f"| {group} | {t[:, layer].mean():.3f} | {width} |")
    return lines


def _gate(vector: Vector) -> list[str]:
    lines = [
        "",
        "| modality | shift along the direction (t) | spread | gate opens at t | fully open |",
        "| --- | --- | --- | --- | --- |",
    ]
    g = vector.geometry
    for m in vector.modalities:
        spread = g.spreads[m]
        lines.append(
            f"| {m} | {float(g.shifts[m] @ g.readout):.3f} | {spread:.3f} | "
            f"{g.gate_opens * spread:.3f} | {(g.gate_opens + g.gate_ramp) * spread:.3f} |"
        )
    return lines


def _blocks(conversion: Conversion) -> list[str]:
    scores = conversion.scores
    lines = [
        "",
        "## Blocks",
        "",
        "separation: AUROC of t, held-out harmful against harmless text. threshold: t that neutral "
        "inputs stay below. effect: share of harmless prompts that forced steering turns into "
        "refusals. total = separation x effect x (1 - worst threshold).",
        "",
        "| block | separation | "
        + " | ".join(f"threshold, {m}" for m in scores.threshold)
        + " | effect | total |",
        "| --- " * (4 + len(scores.threshold)) + "|",
    ]
    columns = [scores.separation, *scores.threshold.values(), scores.effect, scores.total]
    for block in np.flatnonzero(~np.isnan(scores.total)):
        name = f"**{block}**" if block == conversion.vector.layer else str(block)
        lines.append(f"| {name} | " + " | ".join(f"{x[block]:.3f}" for x in columns) + " |")
    return lines


def _values(vector: Vector, sha256: str) -> list[str]:
    return [
        "",
        "## All values",
        "",
        "```",
        describe(vector),
        f"sha256      {sha256}",
        "```",
        "",
        "The file adds refusal where the model itself would have refused the same request as "
        "text; it does not make a model safe that was not aligned, and it is measured on the "
        "prompts whose hash stands above, not on yours.",
        "",
    ]
