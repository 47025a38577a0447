"""The table says what was found, and why it may mean nothing."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from lab.bench.figures import Aim, Figure
from lab.bench.printing import machine, print_report, versions


def test_a_figure_within_the_noise_is_shown_with_how_much_that_is() -> None:
    control = {"samples": [1.012] * 3, "control": [0.97, 1.0, 1.01]}
    figures = [
        Figure("first-token", "time [s]", "plain", Aim(1.01), **control),  # type: ignore[arg-type]
        Figure("memory", "peak", "plain", Aim(32.0), "MiB", samples=[40.0], note="one prompt"),
    ]
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "options": {"repetitions": 3, "rpc_servers": None},
    }
    console = Console(record=True, width=140, file=io.StringIO())
    print_report(console, "a model", report, figures)
    shown = console.export_text()
    (row,) = (line for line in shown.splitlines() if "time [s]" in line)
    assert row.rstrip().endswith("<= 1.010  within the noise")
    (row,) = (line for line in shown.splitlines() if "peak" in line)
    assert "40.0 MiB" in row and row.rstrip().endswith("missed")
    assert "first-token: the same model loaded again is up to 1.5% off" in shown
    assert "memory: one prompt; 1 runs" in shown
