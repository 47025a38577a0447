"""The card and the plot that go with a vector file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mars_gguf.convert.measure import Conversion
from mars_gguf.vectors import Vector, describe

PARITY = "## Parity"  # the heading that mars_gguf.convert.parity puts its table under


def card(conversion: Conversion, name: str, sha256: str, parity: str = "") -> str:
    """The Markdown card of the vector file called ``name`` with this hash: what was measured, on
    what, and how to use it. ``parity``: a table of mars_gguf.convert.parity to end with."""
    vector, scores = conversion.vector, conversion.scores
    mmproj = "--mmproj MMPROJ.gguf " if vector.modalities != ["text"] else ""
    g, layer = vector.geometry, vector.layer
    lines = [
        f"# {name}",
        "",
        f"A refusal-steering vector for **{_model_name(vector)}** "
        f"({vector.model.quantization or vector.source['backend']}), made by "
        f"{vector.source['tool']}.",
        "",
        "```",
        f"python -m mars_gguf.chat --model MODEL.gguf {mmproj}--vector {name}",
        "```",
        "",
    ]
    if conversion.warnings:
        lines += ["## Warnings", "", *[f"- {warning}" for warning in conversion.warnings], ""]
    lines += [
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
    lines += [
        "",
        "| modality | shift along the direction (t) | spread | gate opens at t | fully open |",
        "| --- | --- | --- | --- | --- |",
    ]
    for m in vector.modalities:
        spread = g.spreads[m]
        lines.append(
            f"| {m} | {float(g.shifts[m] @ g.readout):.3f} | {spread:.3f} | "
            f"{g.gate_opens * spread:.3f} | {(g.gate_opens + g.gate_ramp) * spread:.3f} |"
        )
    lines += [
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
    for block in np.flatnonzero(~np.isnan(scores.total)):
        cells = [scores.separation[block], *(t[block] for t in scores.threshold.values())]
        cells += [scores.effect[block], scores.total[block]]
        bold = f"**{block}**" if block == layer else str(block)
        lines.append(f"| {bold} | " + " | ".join(f"{x:.3f}" for x in cells) + " |")
    lines += [
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
    return "\n".join(lines) + ("\n" + parity if parity else "")


def split_parity(text: str) -> tuple[str, str]:
    """A card's text without its parity table, ready to append one, and the table ("": none)."""
    text, heading, table = text.partition(f"\n{PARITY}: ")
    return text.rstrip() + "\n\n", heading.lstrip() + table


def _model_name(vector: Vector) -> str:
    return str(vector.model.name or vector.source.get("model") or vector.model.architecture)


def write_plot(conversion: Conversion, path: Path) -> None:
    """Plot t by block for every set, and the blocks' scores (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    vector, scores = conversion.vector, conversion.scores
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    blocks = np.arange(vector.model.n_layer)
    for name, t in conversion.coordinates.items():
        text = name.endswith(" text")
        colour = {"harmful text": "tab:red", "harmless text": "tab:green"}.get(name)
        (line,) = top.plot(
            blocks,
            t.mean(0),
            label=name,
            color=colour,
            linewidth=2 if text else 1,
            linestyle="-" if text else "--",
        )
        if text:
            low, high = t.mean(0) - t.std(0), t.mean(0) + t.std(0)
            top.fill_between(blocks, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    top.axhline(0, color="0.7", linewidth=0.8)
    top.axhline(1, color="0.7", linewidth=0.8)
    top.set_ylim(-1, 2)
    top.set_ylabel("t (0 safe, 1 unsafe centroid)")
    top.set_title(f"{_model_name(vector)}: where prompts lie, before re-centering")
    top.legend(fontsize=7, ncols=2, loc="upper left")
    bottom.plot(blocks, scores.separation, label="separation (AUROC)")
    bottom.plot(blocks, scores.effect, label="effect of forced steering")
    bottom.plot(blocks, scores.total, label="total", linewidth=2, color="black")
    bottom.set_ylim(0, 1.05)
    bottom.set_xlabel("block")
    bottom.legend(fontsize=7, loc="upper left")
    for axes in (top, bottom):
        axes.axvline(vector.layer, color="black", linestyle=":", linewidth=1)
    figure.savefig(path, format="png", dpi=130)
