"""Writes the figures, and what they depend on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lab.bench.figures import Figure, summary
from lab.bench.processes import COLUMNS, WAYS
from mars_gguf import __version__
from mars_gguf.markdown import table


def machine() -> dict[str, Any]:
    """The machine: processor, cores, system, load before the run."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
    }


def versions() -> dict[str, str]:
    """The versions of this package and of what decides its speed."""
    built_on = {name: version(name) for name in ("llama-cpp-python", "numpy")}
    return {"mars-gguf": __version__, **built_on, "python": platform.python_version()}


def report_lines(title: str, report: dict[str, Any], figures: Sequence[Figure]) -> Iterator[str]:
    """Yields what the figures depend on, a table of them, and what was done for each."""
    m, options = report["machine"], report["options"]
    load = f", load {m['load'][0]:.1f} before" if m["load"] else ""
    yield title
    yield f"{m['processor']}, {m['cores']} cores, {m['system']}{load}"
    yield ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    if options["rpc_servers"]:
        yield f"layers on RPC servers: {options['rpc_servers']}"
    repetitions = options["repetitions"]
    yield f"\nMedian of {repetitions} interleaved runs and interquartile range:\n"
    header = ["figure", "what", "held against", "median", "spread", "aim", ""]
    yield from table(header, [_row(figure) for figure in figures])
    for figure in figures:
        if figure.name == "price" and figure.values:
            yield "\nThe price of a reply:\n"
            yield from table(["", *COLUMNS.values()], list(_prices(figure)))
    yield ""
    if "aims" in report:
        yield report["aims"]
    for figure in figures:
        yield from _note(figure, repetitions)


def _row(f: Figure) -> list[str]:
    digits, unit = (1, f" {f.unit}") if f.unit else (3, "")
    aim = f"{'>=' if f.aim.at_least else '<='} {f.aim.bound:.{digits}f}{unit}" if f.aim else ""
    median = spread = ""
    if f.samples:
        s = summary(f.samples)
        median, spread = f"{s.median:.{digits}f}{unit}", f"{s.low:.{digits}f}-{s.high:.{digits}f}"
    return [f.name, f.title, f.limit, median, spread, aim, f.verdict]


def _prices(figure: Figure) -> Iterator[list[str]]:
    """Yields the rows of the table of `price`: medians and quartiles."""
    for way, words in WAYS.items():
        found = [summary(figure.values[f"{way}: {column}"]) for column in COLUMNS]
        yield [words, *(f"{s.median:.0f} ({s.low:.0f}-{s.high:.0f})" for s in found)]


def _note(f: Figure, repetitions: int) -> Iterator[str]:
    """Yields a line on a figure: how it was measured, or why it was not."""
    parts = [f.failure, f.absent, f.note]
    if f.verdict == "within the noise":
        parts.append(f"the same model loaded again is up to {f.noise:.1%} off")
    if f.samples and len(f.samples) != repetitions:
        parts.append(f"{len(f.samples)} runs")
    if any(parts):
        yield f"{f.name}: {'; '.join(filter(None, parts))}"
