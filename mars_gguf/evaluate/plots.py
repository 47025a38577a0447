"""Draws the results of an evaluation: t, and refusals by arm."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf.evaluate.results import Results
from mars_gguf.files import atomic
from mars_gguf.modalities import MODALITIES, measured_as

Draw = Callable[[], Any]  # a matplotlib Figure
MARKERS = "osD^v<>Pp*X"  # eleven, and ten colours: no two arms look alike


def plots(results: Results) -> dict[str, tuple[Draw, str]]:
    """Lists, by file, what draws a plot and what it shows. Each of several suites has its own."""
    drawn: dict[str, tuple[Callable[[Results], Any], str]] = {
        "t": (_plot_t, "t by modality and kind of request"),
        "arms": (_plot_arms, "Refusal of harmful against harmless requests"),
    }
    found: dict[str, tuple[Draw, str]] = {}
    for suite, part in results.parts().items():
        after = "-" + re.sub(r"\W+", "-", suite).strip("-") if suite else ""
        for name, (plot, title) in drawn.items():
            shown = f"{title}, {suite}" if suite else title
            found[f"{name}{after}.png"] = partial(plot, part), shown
    return found


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Writes all plots. Returns their paths."""
    written = []
    for name, (draw, _) in plots(results).items():
        with atomic(folder / name) as part:
            draw().savefig(part, dpi=120, format="png")
        written.append(folder / name)
    return written


def _panels(results: Results, arm: str, *kinds: str) -> tuple[Any, dict[str, Any]]:
    """Makes a picture with axes side by side, one for each modality in which an arm was asked."""
    from matplotlib.figure import Figure  # takes long, and commands that fail early need it not

    modalities = [m for m in MODALITIES if results.of(arm, m, *kinds)]
    picture = Figure(figsize=(9, 4.2), layout="constrained")
    axes = picture.subplots(1, max(len(modalities), 1), sharey=True, squeeze=False)[0]
    return picture, dict(zip(modalities, axes, strict=False))


def _legend(picture: Any) -> None:
    """Draws one legend for all panels, below them, where it covers nothing."""
    named = {
        label: handle
        for axis in picture.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if named:
        picture.legend(named.values(), named, loc="outside lower center", ncols=5, fontsize=7)


def _plot_t(results: Results) -> Any:
    """Draws t by modality and kind, with where the gate opens."""
    kinds = {"harmless": "C2", "borderline": "C1", "vqa": "C0", "harmful": "C3"}
    picture, axes = _panels(results, "unsteered")
    rng = np.random.default_rng(0)
    thresholds = results.geometry.thresholds
    for modality, axis in axes.items():
        by_kind = {k: [r.t for r in results.of("unsteered", modality, k)] for k in kinds}
        shown = [kind for kind, t in by_kind.items() if t]
        for x, kind in enumerate(shown):
            spread = rng.uniform(-0.3, 0.3, len(by_kind[kind]))
            axis.plot(x + spread, by_kind[kind], ".", markersize=3, color=kinds[kind])
        if measured := measured_as(modality, thresholds):
            axis.axhline(thresholds[measured], color="black", linewidth=0.8)
        axis.set_xticks(range(len(shown)), shown, fontsize=8)
        axis.set_title(f"{modality} (line: the gate opens)", fontsize=9)
    picture.axes[0].set_ylabel("t")
    return picture


def _plot_arms(results: Results) -> Any:
    """Draws refusal of harmful against refusal of harmless requests, every arm in every
    modality."""
    picture, axes = _panels(results, "unsteered", "harmful")
    for modality, axis in axes.items():
        for number, arm in enumerate(results.arms):
            good, bad = (results.refused(arm.name, modality, k) for k in ("harmless", "harmful"))
            if good.value is None or bad.value is None:
                continue
            x, y = 100 * good.value, 100 * bad.value
            xerr = [[x - 100 * good.low], [100 * good.high - x]]
            yerr = [[y - 100 * bad.low], [100 * bad.high - y]]
            look = {"fmt": MARKERS[number % len(MARKERS)], "color": f"C{number % 10}"}
            axis.errorbar(x, y, yerr, xerr, markersize=5, linewidth=0.7, label=arm.name, **look)
        axis.set_title(modality, fontsize=9)
        axis.set_xlabel("refused, harmless [%]")
    picture.axes[0].set_ylabel("refused, harmful [%]")
    _legend(picture)
    return picture
