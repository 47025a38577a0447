"""What commands print, and how they end."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mars_gguf.errors import MarsError, SteeringError


def printable(line: str) -> str:
    """``line`` with control characters escaped: what a file holds must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def visible(text: str) -> str:
    """As `printable`, but line breaks and tabs stay."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def require_utf8(text: str, what: str) -> str:
    """``text``, if it was UTF-8 where it came from: Python marks other bytes by surrogates.

    Raises MarsError that calls it ``what``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start].encode(errors="surrogateescape")
        raise MarsError(f"{what}: found {found!r}, expected UTF-8; convert it first") from error
    return text


@contextmanager
def command() -> Iterator[None]:
    """Turn bad input into a message and exit code 2, a failure of steering into exit code 1,
    Ctrl-C into exit code 130; no traceback. A reader that went away ends the command. What standard
    output has no characters for is replaced."""
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
