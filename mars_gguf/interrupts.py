"""Holds Ctrl-C back where it must wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Context manager: holds Ctrl-C back until it ends.

    In a callback of llama.cpp's the exception would be lost in ctypes, and what the callback then
    returns would silently drop the rest of the graph; in the middle of drawing, what is drawn later
    would not be shown.
    """
    if threading.current_thread() is not threading.main_thread():  # which Ctrl-C does not reach
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        # None: a handler that Python did not install.
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
        if held:
            signal.raise_signal(signal.SIGINT)
