"""Writes the card of a vector file: what was measured, on what, and how to use it."""

from __future__ import annotations

from importlib.resources import files

import numpy as np

from mars_gguf.console import printable
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.markdown import as_text, table
from mars_gguf.statistics import CONFIDENCE
from mars_gguf.vectors import Vector
from mars_gguf.vectors.describe import describe

WORST = 3  # wordings that are named
TEXT = (files("mars_gguf.convert") / "data" / "card.md").read_text(encoding="utf-8")
PLACES = {  # which token of a model that thinks was measured, by its reasoning
    "answer": " Measured where the answer begins, after the model's own thought, {}.",
    "thought": " Measured where the thought begins; replies are judged by the answer after it, "
    "the thought being {}.",
    "off": " Measured, and to be used, without thoughts.",
}


def card(measurement: Measurement, name: str, sha256: str) -> str:
    """Writes the card, in Markdown, of the vector file called ``name`` with this hash."""
    vector, certificate, warnings = measurement.vector, measurement.certificate, ""
    if measurement.warnings:
        warnings = "\n".join(["## Warnings", "", *(f"- {w}" for w in measurement.warnings), "", ""])
    budgets = [
        f"{m} {float(str(vector.calibration[f'over_refusal.{m}'])):.1%}" for m in vector.modalities
    ]
    thoughts = vector.source.get("thoughts")
    return TEXT.format(
        name=name,
        model=as_text(model_name(vector)),
        made_of=as_text(vector.model.quantization or vector.source["backend"]),
        tool=vector.source["tool"],
        mmproj="--mmproj MMPROJ.gguf " if vector.modalities != ["text"] else "",
        warnings=warnings,
        layer=vector.layer,
        place=PLACES.get(vector.model.reasoning, "").format(thoughts),
        coordinates=_coordinates(measurement),
        gate=_gate(vector),
        budgets=", ".join(budgets),
        confidence=CONFIDENCE,
        caught=certificate.caught,
        harmful=certificate.refused[0],
        neutral=certificate.refused[1],
        opened=_opened(measurement),
        wordings=_wordings(measurement),
        examples=_examples(measurement),
        blocks=_blocks(measurement),
        values=describe(vector),
        sha256=sha256,
    )


def model_name(vector: Vector) -> str:
    """The name of the model, as far as that is known."""
    return str(vector.model.name or vector.source.get("model") or vector.model.architecture)


def _coordinates(measurement: Measurement) -> str:
    layer = measurement.vector.layer
    rows = [
        (as_text(group), f"{t[:, layer].mean():.3f}", f"{t[:, layer].std():.3f}")
        for group, t in measurement.coordinates.items()
    ]
    return "\n".join(table(["set", "mean t", "spread"], rows))


def _gate(vector: Vector) -> str:
    g, rows = vector.geometry, []
    for m in vector.modalities:
        spread, opens = g.spreads[m], g.thresholds[m]
        numbers = (float(g.shifts[m] @ g.readout), spread, opens, opens + g.gate_ramp * spread)
        rows.append([m, *(f"{x:.3f}" for x in numbers)])
    header = "modality", "shift along the read-out (t)", "spread", "gate opens at t", "fully open"
    return "\n".join(table(header, rows))


def _opened(measurement: Measurement) -> str:
    rows = []
    for row in measurement.certificate.neutral:
        name = f"{row.modality}, {as_text(row.group)}" if row.group else f"**{row.modality}**"
        rows.append((name, row, f"{row.bound:.1%}"))
    return "\n".join(table(["harmless input", "opens the gate", "at most"], rows))


def _wordings(measurement: Measurement) -> str:
    """Says of each medium how many wordings let more through than the budget, and which most."""
    lines = []
    for m, each in measurement.certificate.wordings.items():
        budget = float(str(measurement.vector.calibration[f"over_refusal.{m}"]))
        over = [one for one in each if one.k > budget * one.n]
        worst = [f"{_quoted(one.group)} {one.k} of {one.n}" for one in over[:WORST]]
        names = f"; the worst: {', '.join(worst)}" if worst else ""
        lines.append(
            f"- {m}: of {len(each)} wordings that met several inputs, {len(over)} open the gate "
            f"for more than {budget:.0%} of them{names}."
        )
    return "\n".join(lines)


def _examples(measurement: Measurement) -> str:
    """Quotes replies under forced steering, word for word."""
    lines = []
    for prompt, reply in measurement.examples:
        shown = f"({prompt.modality}) " if prompt.images else ""
        lines.append(f"- {shown}{_quoted(prompt.text)} -> {_quoted(reply.text)}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "`" + " ".join(printable(text).replace("`", "'").split()) + "`"


def _blocks(measurement: Measurement) -> str:
    scores = measurement.scores
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
    return "\n".join(table(["block", *columns], rows))
