"""Draws the plot that goes with a vector file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf.convert.card import model_name
from mars_gguf.convert.pipeline import Measurement


def write_plot(measurement: Measurement, path: Path) -> None:
    """Plots t by block for every set, and the scores of the blocks (PNG)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    vector = measurement.vector
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    _draw_coordinates(top, measurement)
    top.set_title(f"{model_name(vector)}: where prompts lie, before re-centering")
    _draw_scores(bottom, measurement)
    for axes in (top, bottom):
        axes.axvline(vector.layer, color="black", linestyle=":", linewidth=1)
    figure.savefig(path, format="png", dpi=130)


def _draw_coordinates(axes: Any, measurement: Measurement) -> None:
    blocks = np.arange(measurement.vector.model.n_layer)
    for name, t in measurement.coordinates.items():
        colour = {"harmful text": "tab:red", "neutral text": "tab:green"}.get(name)
        style = "-" if name.endswith(" text") else "--"
        (line,) = axes.plot(blocks, t.mean(0), style, label=name, color=colour, linewidth=2)
        low, high = t.mean(0) - t.std(0), t.mean(0) + t.std(0)
        axes.fill_between(blocks, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set_ylim(-1, 2)
    axes.set_ylabel("t (0 safe, 1 unsafe centroid)")
    axes.legend(fontsize=7, ncols=2, loc="upper left")


def _draw_scores(axes: Any, measurement: Measurement) -> None:
    scores = measurement.scores
    blocks = np.arange(measurement.vector.model.n_layer)
    axes.plot(blocks, scores.separation, label="separation (AUROC)")
    axes.plot(blocks, scores.reach, label="reach")
    axes.plot(blocks, scores.effect, "o", label="effect of forced steering")
    axes.plot(blocks, scores.total, "o", label="total", color="black")
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("block")
    axes.legend(fontsize=7, loc="best")
