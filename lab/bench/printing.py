"""Prints the figures, and what they depend on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.bench.figures import Figure, summary
from lab.bench.price import COLUMNS, WAYS
from mars_gguf import __version__

COLOURS = {"met": "green", "missed": "red", "shown": "dim"}  # what tells nothing is yellow


def machine() -> dict[str, Any]:
    """The machine: processor, cores that this process may use, system, load before the run."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
    }


def versions() -> dict[str, str]:
    """The versions of this package and of what decides its speed."""
    built_on = {name: version(name) for name in ("llama-cpp-python", "numpy")}
    return {"mars-gguf": __version__, **built_on, "python": platform.python_version()}


def print_report(
    console: Console, title: str, report: dict[str, Any], figures: Sequence[Figure]
) -> None:
    """Prints what the figures depend on, a table of them, and what was done for each."""
    m, options = report["machine"], report["options"]
    load = f", load {m['load'][0]:.1f} before" if m["load"] else ""
    said = [title, f"{m['processor']}, {m['cores']} cores, {m['system']}{load}"]
    said.append(", ".join(f"{name} {found}" for name, found in report["versions"].items()))
    if options["rpc_servers"]:
        said.append(f"layers on RPC servers: {options['rpc_servers']}")
    for line in said:
        console.print(line, markup=False)
    console.print(_table(figures, options["repetitions"]))
    for figure in figures:
        if figure.name == "price" and figure.values:
            console.print(_prices(figure))
    for line in filter(None, [report.get("aims"), *_notes(figures, options["repetitions"])]):
        console.print(line, style="dim", markup=False)


def _table(figures: Sequence[Figure], repetitions: int) -> Table:
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
        digits, unit = (1, f" {f.unit}") if f.unit else (3, "")
        s = summary(f.samples) if f.samples else None
        aim = f"{'>=' if f.aim.at_least else '<='} {f.aim.bound:.{digits}f}{unit}" if f.aim else ""
        table.add_row(
            f.name,
            escape(f.title),
            escape(f.limit),
            f"{s.median:.{digits}f}{unit}" if s else "",
            f"{s.low:.{digits}f}-{s.high:.{digits}f}" if s else "",
            aim,
            f"[{COLOURS.get(f.verdict, 'yellow')}]{f.verdict}[/]",
        )
    return table


def _prices(figure: Figure) -> Table:
    """Makes the table of `price`: medians, and quartiles where there are several runs."""
    table = Table(title="The price of a reply", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for title in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for way, words in WAYS.items():
        found = [summary(figure.values[f"{way}: {column}"]) for column in COLUMNS]
        table.add_row(words, *(f"{s.median:.0f} ({s.low:.0f}-{s.high:.0f})" for s in found))
    return table


def _notes(figures: Sequence[Figure], repetitions: int) -> list[str]:
    """A line on each figure: how it was measured, or why it was not."""
    lines = []
    for f in figures:
        parts = [f.failure, f.absent, f.note]
        if f.verdict == "within the noise":
            parts.append(f"the same model loaded again is up to {f.noise:.1%} off")
        if f.samples and len(f.samples) != repetitions:
            parts.append(f"{len(f.samples)} runs")
        if any(parts):
            lines.append(f"{f.name}: {'; '.join(filter(None, parts))}")
    return lines
