"""Makes text safe to print, and ends commands with a message and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mars_gguf.errors import MarsError, SteeringError

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

SHOW_CURSOR = b"\x1b[?25h"


def printable(line: str) -> str:
    """Escapes the control characters of a line: what a file holds must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def visible(text: str) -> str:
    """Escapes as `printable`, but leaves line breaks and tabs."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def require_utf8(text: str, what: str) -> str:
    """Returns ``text`` if it was UTF-8 where it came from: Python marks other bytes by surrogates.

    Raises MarsError that calls it ``what``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start].encode(errors="surrogateescape")
        raise MarsError(f"{what}: found {found!r}, expected UTF-8; convert it first") from error
    return text


def terminal_restorer() -> Callable[[], None]:
    """Returns a function that puts the terminal back as it is now: whether it shows what is typed,
    and the cursor.

    For a process that ends without any ``finally``. Where there is no terminal it does nothing.
    """
    if termios is None or not os.isatty(0):
        return lambda: None
    before = termios.tcgetattr(0)

    def restore() -> None:
        if _in_foreground():
            termios.tcsetattr(0, termios.TCSANOW, before)
            os.write(0, SHOW_CURSOR)

    return restore


@contextmanager
def without_echo() -> Iterator[None]:
    """Lets the terminal show nothing of what is typed meanwhile.

    The ^C of a Ctrl-C would move what is being drawn by a line.
    """
    if termios is None or not os.isatty(0) or not _in_foreground():
        yield
        return
    restore, quiet = terminal_restorer(), termios.tcgetattr(0)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(0, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        restore()


def _in_foreground() -> bool:
    """Decides whether the terminal may be touched: a job in the background would be stopped."""
    return os.tcgetpgrp(0) == os.getpgrp()


@contextmanager
def command() -> Iterator[None]:
    """Ends a command as users expect it, without a traceback.

    Bad input becomes a message and exit code 2, a failure of steering a message and exit code 1,
    Ctrl-C exit code 130. A reader that went away ends the command. What standard output has no
    characters for is replaced.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MarsError, SteeringError, OSError) as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        sys.exit(1 if isinstance(error, SteeringError) else 2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
