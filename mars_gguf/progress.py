"""Shows how far a long task is: a bar on standard error, where that is a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mars_gguf.console import printable


@dataclass(frozen=True)
class Bar:
    """Counts the steps of a task of rich's ``progress``; one that is not ``shown`` only counts."""

    progress: Progress
    task: TaskID

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return not self.progress.disable

    def advance(self, steps: float = 1) -> None:
        """So many more steps are done."""
        self.progress.advance(self.task, steps)

    def reach(self, steps: float) -> None:
        """So many steps are done in all."""
        self.progress.update(self.task, completed=steps)

    def expect(self, steps: float) -> None:
        """So many more steps are to come, whatever was expected before."""
        self.progress.update(self.task, total=self.progress.tasks[self.task].completed + steps)


@contextmanager
def progress_bar(
    title: str, total: float | None, unit: str = "", *, done: float = 0, shown: bool = True
) -> Iterator[Bar]:
    """Context manager: a bar of ``total`` steps, of which ``done`` are done, that vanishes at the
    end. With a ``unit`` ("prompts") the steps are counted beside it, else it says per cent."""
    shown = shown and sys.stderr is not None and sys.stderr.isatty()
    count = "{task.completed:.0f}/{task.total:.0f} " + unit if unit else "{task.percentage:>3.0f}%"
    title_column = TextColumn("{task.description}", markup=False)
    columns = title_column, BarColumn(), TextColumn(count, markup=False), TimeRemainingColumn()
    # A file of its own: llama-cpp-python sends standard error to nowhere while it loads.
    file = os.dup(2) if shown else os.devnull
    with (
        open(file, "w", encoding="utf-8") as terminal,
        Progress(
            *columns, console=Console(file=terminal), transient=True, disable=not shown
        ) as progress,
    ):
        yield Bar(progress, progress.add_task(printable(title), total=total, completed=int(done)))
