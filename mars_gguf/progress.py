"""Shows how far a long task is: a bar on standard error, where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mars_gguf.console import printable


class Bar:
    """Counts steps of a task; one that is not ``shown`` only counts."""

    def __init__(self, total: float | None, shown: tuple[Progress, TaskID] | None) -> None:
        self.total, self.done = total, 0.0
        self._shown = shown

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._shown is not None

    def advance(self, steps: float = 1) -> None:
        """So many more steps are done."""
        self.done += steps
        self._show()

    def reach(self, steps: float) -> None:
        """So many steps are done in all."""
        self.advance(steps - self.done)

    def expect(self, steps: float) -> None:
        """So many more steps are to come, whatever was expected before."""
        self.total = self.done + steps
        self._show()

    def _show(self) -> None:
        if self._shown is not None:
            progress, task = self._shown
            progress.update(task, completed=self.done, total=self.total)


@contextmanager
def progress_bar(
    title: str, total: float | None, unit: str = "", *, done: float = 0, shown: bool = True
) -> Iterator[Bar]:
    """Context manager: a bar of ``total`` steps, of which ``done`` are done, that vanishes at the
    end. With a ``unit`` ("prompts") the steps are counted beside it, else it says per cent."""
    if not shown or sys.stderr is None or not sys.stderr.isatty():
        bar = Bar(total, None)
        bar.advance(done)
        yield bar
        return
    count = "{task.completed:.0f}/{task.total:.0f} " + unit if unit else "{task.percentage:>3.0f}%"
    title_column = TextColumn("{task.description}", markup=False)
    columns = title_column, BarColumn(), TextColumn(count, markup=False), TimeRemainingColumn()
    # A file of its own: llama-cpp-python sends standard error to nowhere while it loads.
    with (
        os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal,
        Progress(*columns, console=Console(file=terminal), transient=True) as progress,
    ):
        bar = Bar(total, (progress, progress.add_task(printable(title), total=total)))
        bar.advance(done)
        yield bar
