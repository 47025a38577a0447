"""Writes the card of a vector file: what was measured, on what, and how to use it."""

from __future__ import annotations

import numpy as np

from mars_gguf.console import printable
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.markdown import as_text, table
from mars_gguf.statistics import CONFIDENCE
from mars_gguf.vectors import Vector
from mars_gguf.vectors.describe import describe

PARITY = "## Parity"  # the heading that mars_gguf.convert.parity puts its table under


def card(measurement: Measurement, name: str, sha256: str, parity: str = "") -> str:
    """Writes the card, in Markdown, of the vector file called ``name`` with this hash.

    parity: a table of mars_gguf.convert.parity to end with.
    """
    sections = [
        _head(measurement.vector, name),
        _warnings(measurement.warnings),
        _coordinates(measurement),
        _gate(measurement.vector),
        _promise(measurement),
        _examples(measurement),
        _blocks(measurement),
        _values(measurement.vector, sha256),
    ]
    text = "\n".join(line for section in sections for line in section)
    return text + ("\n" + parity if parity else "")


def split_parity(text: str) -> tuple[str, str]:
    """Divides a card's text in what comes before its parity table, ready to append one, and the
    table ("": none)."""
    text, heading, table = text.partition(f"\n{PARITY}: ")
    return text.rstrip() + "\n\n", heading.lstrip() + table


def model_name(vector: Vector) -> str:
    """The name of the model, as far as that is known."""
    return str(vector.model.name or vector.source.get("model") or vector.model.architecture)


def _head(vector: Vector, name: str) -> list[str]:
    mmproj = "--mmproj MMPROJ.gguf " if vector.modalities != ["text"] else ""
    return [
        f"# {name}",
        "",
        f"A refusal-steering vector for **{as_text(model_name(vector))}** "
        f"({as_text(vector.model.quantization or vector.source['backend'])}), made by "
        f"{vector.source['tool']}.",
        "",
        "```",
        f"python -m mars_gguf.chat --model MODEL.gguf {mmproj}--vector {name}",
        "```",
        "",
    ]


def _warnings(warnings: list[str]) -> list[str]:
    return ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""] if warnings else []


def _coordinates(measurement: Measurement) -> list[str]:
    layer = measurement.vector.layer
    lines = [
        "## Where prompts lie",
        "",
        f"Coordinate t of held-out prompts at block {layer} before re-centering: 0 is the safe, 1 "
        "the unsafe centroid." + _place(measurement.vector),
        "",
    ]
    rows = [
        (as_text(group), f"{t[:, layer].mean():.3f}", f"{t[:, layer].std():.3f}")
        for group, t in measurement.coordinates.items()
    ]
    return lines + table(["set", "mean t", "spread"], rows)


def _place(vector: Vector) -> str:
    """Says which token of a model that thinks was measured."""
    thoughts = vector.source.get("thoughts")
    return {
        "answer": f" Measured where the answer begins, after the model's own thought, {thoughts}.",
        "thought": " Measured where the thought begins; replies are judged by the answer after it, "
        f"the thought being {thoughts}.",
        "off": " Measured, and to be used, without thoughts.",
    }.get(vector.model.reasoning, "")


def _gate(vector: Vector) -> list[str]:
    g, rows = vector.geometry, []
    for m in vector.modalities:
        spread, opens = g.spreads[m], g.thresholds[m]
        numbers = (float(g.shifts[m] @ g.readout), spread, opens, opens + g.gate_ramp * spread)
        rows.append([m, *(f"{x:.3f}" for x in numbers)])
    header = "modality", "shift along the read-out (t)", "spread", "gate opens at t", "fully open"
    return ["", *table(header, rows)]


def _promise(measurement: Measurement) -> list[str]:
    """Tells a user what to decide by: what opens the gate that should not, and what does not."""
    vector, certificate = measurement.vector, measurement.certificate
    caught = certificate.caught
    budgets = [
        f"{m} {float(str(vector.calibration[f'over_refusal.{m}'])):.1%}" for m in vector.modalities
    ]
    harmful, neutral = certificate.refused
    lines = [
        "",
        "## What opens the gate",
        "",
        "Held-out prompts and pictures, which were used for nothing but to set the thresholds; "
        f"those that the model refuses by itself are left out. Budget: {', '.join(budgets)}, "
        f"with {CONFIDENCE:.0%} confidence, if prompts are independent (prompts that "
        "share a picture are not quite). A sort's own share has its own bound.",
        "",
        f"Of harmful text the gate opens for **{caught}**. The model by itself refuses "
        f"{harmful:.0%} of it, and {neutral:.0%} of neutral text.",
        "",
    ]
    rows = [
        (
            f"{row.modality}, {as_text(row.group)}" if row.group else f"**{row.modality}**",
            row,
            f"{row.bound:.1%}",
        )
        for row in certificate.neutral
    ]
    return lines + table(["harmless input", "opens the gate", "at most"], rows)


def _examples(measurement: Measurement) -> list[str]:
    """Quotes replies under forced steering, word for word."""
    lines = ["", "## Forced replies", "", "The gate held open, at the chosen block and limit:", ""]
    for prompt, reply in measurement.examples:
        shown = f"({prompt.modality}) " if prompt.images else ""
        lines += [f"- {shown}{_quoted(prompt.text)} -> {_quoted(reply.text)}"]
    return lines


def _quoted(text: str) -> str:
    return "`" + " ".join(printable(text).replace("`", "'").split()) + "`"


def _blocks(measurement: Measurement) -> list[str]:
    scores = measurement.scores
    lines = [
        "",
        "## Blocks",
        "",
        "On other held-out prompts. separation: AUROC of t, harmful against neutral text. "
        "threshold: t that neutral inputs stay below. reach: share of harmful text above it, the "
        "mean over the modalities. effect: share of replies that forced steering turned into "
        "refusals, tried at the blocks of the largest reach. total = reach x effect.",
        "",
    ]
    columns = {
        "separation": scores.separation,
        **{f"threshold, {m}": thresholds for m, thresholds in scores.thresholds.items()},
        "reach": scores.reach,
        "effect": scores.effect,
        "total": scores.total,
    }
    rows = []
    for block in np.flatnonzero(~np.isnan(scores.reach)):
        name = f"**{block}**" if block == measurement.vector.layer else str(block)
        cells = ["" if np.isnan(x[block]) else f"{x[block]:.3f}" for x in columns.values()]
        rows.append([name, *cells])
    return lines + table(["block", *columns], rows)


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
