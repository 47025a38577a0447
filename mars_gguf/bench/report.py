"""What was measured, on what: a table, JSON, and the plot of cost against size."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mars_gguf import __version__
from mars_gguf.bench.figures import FLAT, Figure, Line, Summary, summary
from mars_gguf.files import atomic

COLOURS = {"met": "green", "missed": "red", "not measured": "yellow", "shown": "dim"}


def machine() -> dict[str, Any]:
    """The machine: processor, cores that this process may use, system, load before the run."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": name,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
    }


def versions() -> dict[str, str]:
    return {
        "mars-gguf": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def figure_table(figures: Sequence[Figure], repetitions: int) -> Table:
    table = Table(
        title=f"Median of {repetitions} interleaved runs and interquartile range",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("figure", "held against"):
        table.add_column(name, overflow="fold")
    for name in ("median", "spread", "aim"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for f in figures:
        s = summary(f.samples) if f.samples else None
        aim = f"{'>=' if f.aim.at_least else '<='} {_number(f.aim.bound, f)}" if f.aim else ""
        table.add_row(
            f.name,
            escape(f.title),
            escape(f.limit),
            _number(s.median, f) if s else "",
            _spread(s, f) if s else "",
            aim,
            f"[{COLOURS[f.verdict]}]{f.verdict}[/]",
        )
    return table


def notes(figures: Sequence[Figure], repetitions: int) -> list[str]:
    """What was done for each figure, or why it was not measured."""
    lines = []
    for f in figures:
        parts = [f.failure, f.absent, f.note]
        if f.samples and len(f.samples) != repetitions:
            parts.append(f"{len(f.samples)} runs")
        if any(parts):
            lines.append(f"{f.name}: {'; '.join(filter(None, parts))}")
    return lines


def _number(value: float, figure: Figure) -> str:
    return f"{value:.1f} {figure.unit}" if figure.unit else f"{value:.3f}"


def _spread(s: Summary, figure: Figure) -> str:
    digits = 1 if figure.unit else 3
    return f"{s.low:.{digits}f}-{s.high:.{digits}f}"


def line_table(lines: Sequence[Line]) -> Table:
    table = Table(
        title="Seconds of extraction against size, straight line fitted to the medians",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("against", overflow="fold")
    for name in ("from", "to", "slope", "R squared"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        first, last = ((line.x[i], line.medians[i]) for i in (0, -1))
        table.add_row(
            f"{escape(line.label)}\n[dim]{line.name}[/]",
            f"{first[1]:.3f} s at {first[0]:g}",
            f"{last[1]:.3f} s at {last[0]:g}",
            f"{1000 * line.fit.slope:.3f} ms",
            "flat" if line.flat else f"{line.fit.r_squared:.3f}",
        )
    if any(line.flat for line in lines):
        table.caption = f"flat: from end to end less than {FLAT:.0%} of the mean; no R squared then"
        table.caption_justify = "left"
    return table


def plot(lines: Sequence[Line], path: Path, title: str) -> None:
    """Write a PNG: for each line medians, quartiles and the fit."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(2, len(lines))
    rows = -(-len(lines) // columns)
    drawn, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(lines) :]:
        ax.axis("off")
    for ax, line in zip(axes.flat, lines, strict=False):
        spread = [summary(samples) for samples in line.seconds]
        errors = [[s.median - s.low for s in spread], [s.high - s.median for s in spread]]
        ax.errorbar(line.x, line.medians, errors, fmt="o", capsize=3)
        ends = [min(line.x), max(line.x)]
        ax.plot(ends, [line.fit.intercept + line.fit.slope * x for x in ends], "--", color="grey")
        ax.set(xlabel=line.label, ylabel="seconds", ylim=(0, None))
        ax.set_title("flat" if line.flat else f"R² = {line.fit.r_squared:.3f}", fontsize=10)
    drawn.suptitle(title, fontsize=11)
    with atomic(path) as file:
        drawn.savefig(file, dpi=120, format="png")
    pyplot.close(drawn)
