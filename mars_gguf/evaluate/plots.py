"""The figures of an evaluation, drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf.evaluate.arms import Arm
from mars_gguf.evaluate.figures import Figures
from mars_gguf.files import atomic
from mars_gguf.modalities import MODALITIES

Plot = Callable[[Figures], Any]  # what it draws is a matplotlib Figure
Draw = Callable[[], Any]
MARKERS = "osD^v<>Pp*X"  # eleven, and ten colours: no two arms look alike


def plots(figures: Figures) -> dict[str, tuple[Draw, str]]:
    """By file: what draws it, and what it shows. Of several suites each has its own."""
    drawn: dict[str, tuple[Plot, str]] = {
        "t": (_plot_t, "t by modality and kind of request"),
        "arms": (_plot_arms, "Refusal of harmful against harmless requests"),
    }
    if figures.sweep:
        drawn["sweep"] = _plot_sweep, "Refusal by the strength of fixed steering"
    found: dict[str, tuple[Draw, str]] = {}
    for suite, part in (figures.parts() or {"": figures}).items():
        after = "-" + re.sub(r"\W+", "-", suite).strip("-") if suite else ""
        for name, (plot, title) in drawn.items():
            shown = f"{title}, {suite}" if suite else title
            found[f"{name}{after}.png"] = partial(plot, part), shown
    return found


def write_plots(figures: Figures, folder: Path) -> list[Path]:
    """Write all plots; what was written."""
    written = []
    for name, (draw, _) in plots(figures).items():
        with atomic(folder / name) as part:
            draw().savefig(part, dpi=120, format="png")
        written.append(folder / name)
    return written


def _panels(modalities: Sequence[str]) -> tuple[Any, Any]:
    """A picture with axes side by side, one for each modality."""
    from matplotlib.figure import Figure  # takes long, and commands that fail early need it not

    picture = Figure(figsize=(9, 4.2), layout="constrained")
    return picture, picture.subplots(1, max(len(modalities), 1), sharey=True, squeeze=False)[0]


def _legend(picture: Any, axes: Any) -> None:
    """One for all panels, below them, where it covers nothing."""
    named = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if named:
        picture.legend(named.values(), named, loc="outside lower center", ncols=5, fontsize=7)


def _plot_t(figures: Figures) -> Any:
    """t by modality and kind, with where the gate opens."""
    kinds = {"harmless": "C2", "borderline": "C1", "vqa": "C0", "harmful": "C3"}
    present = [m for m in MODALITIES if figures.of("unsteered", m)]
    picture, axes = _panels(present)
    rng = np.random.default_rng(0)
    for axis, modality in zip(axes, present, strict=False):
        shown = [k for k in kinds if figures.of("unsteered", modality, k)]
        for x, kind in enumerate(shown):
            t = [r.t for r in figures.of("unsteered", modality, kind)]
            spread = rng.uniform(-0.3, 0.3, len(t))
            axis.plot(x + spread, t, ".", markersize=3, color=kinds[kind])
        thresholds = figures.geometry.thresholds
        opens = thresholds.get(modality, thresholds.get("image"))
        if opens is not None:
            axis.axhline(opens, color="black", linewidth=0.8)
        axis.set_xticks(range(len(shown)), shown, fontsize=8)
        axis.set_title(f"{modality} (line: the gate opens)", fontsize=9)
    axes[0].set_ylabel("t")
    return picture


def _plot_arms(figures: Figures) -> Any:
    """Refusal of harmful against refusal of harmless requests, every arm in every modality."""
    present = [m for m in MODALITIES if figures.of("unsteered", m, "harmful")]
    picture, axes = _panels(present)
    for axis, modality in zip(axes, present, strict=False):
        for arm in figures.arms:
            _plot_point(axis, figures, arm, modality)
        axis.set_title(modality, fontsize=9)
        axis.set_xlabel("refused, harmless [%]")
    axes[0].set_ylabel("refused, harmful [%]")
    _legend(picture, axes)
    return picture


def _plot_point(axis: Any, figures: Figures, arm: Arm, modality: str) -> None:
    good, bad = (figures.refused(arm.name, modality, kind) for kind in ("harmless", "harmful"))
    if good.value is None or bad.value is None:
        return
    x, y = 100 * good.value, 100 * bad.value
    xerr = [[x - 100 * good.low], [100 * good.high - x]]
    yerr = [[y - 100 * bad.low], [100 * bad.high - y]]
    number = [each.name for each in figures.arms].index(arm.name)
    style = dict(fmt=MARKERS[number % len(MARKERS)], markersize=5, linewidth=0.7, label=arm.name)
    axis.errorbar(x, y, yerr, xerr, color=f"C{number % 10}", **style)


def _plot_sweep(figures: Figures) -> Any:
    """Refusal of harmful and harmless requests by the strength of fixed steering."""
    present = [m for m in MODALITIES if figures.of(figures.sweep[0].name, m)]
    picture, axes = _panels(present)
    strengths = [float(arm.name.split("@")[1]) for arm in figures.sweep]
    for axis, modality in zip(axes, present, strict=False):
        for kind, colour in (("harmful", "C3"), ("harmless", "C2")):
            shares = [figures.refused(arm.name, modality, kind) for arm in figures.sweep]
            values = [100 * s.value if s.value is not None else np.nan for s in shares]
            axis.plot(strengths, values, "o-", color=colour, label=f"{kind}, fixed")
            mars = figures.refused("mars", modality, kind)
            if mars.value is not None:
                axis.axhline(100 * mars.value, color=colour, linestyle=":", label=f"{kind}, MARS")
        axis.set_title(modality, fontsize=9)
        axis.set_xlabel("strength at the first token [r]")
    axes[0].set_ylabel("refused [%]")
    _legend(picture, axes)
    return picture
