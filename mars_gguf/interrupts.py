"""Holds Ctrl-C back where it must wait."""

from __future__ import annotations

import signal


class interrupts_held:
    """Holds Ctrl-C back until the block that it is the context manager of ends.

    In a callback of llama.cpp's the exception would be lost in ctypes, and what the callback then
    returns would silently drop the rest of the graph; in the middle of drawing, what is drawn later
    would not be shown.
    """

    def __enter__(self) -> None:
        self._interrupted, self._holds = False, True
        try:
            self._handler = signal.signal(signal.SIGINT, self._hold)
        except ValueError:  # in another thread than the main one, which Ctrl-C does not reach
            self._holds = False

    def __exit__(self, _kind: object, _error: BaseException | None, _trace: object) -> None:
        if self._holds:
            # None: a handler that Python did not install.
            known = self._handler is not None
            signal.signal(signal.SIGINT, self._handler if known else signal.default_int_handler)
            if self._interrupted:
                signal.raise_signal(signal.SIGINT)

    def _hold(self, _number: int, _frame: object) -> None:
        self._interrupted = True
