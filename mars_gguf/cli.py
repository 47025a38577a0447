"""What all commands share: how they end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mars_gguf.errors import MarsError


@contextmanager
def command() -> Iterator[None]:
    """Turn bad input into a message and exit code 2, Ctrl-C into exit code 130, no traceback."""
    try:
        yield
    except MarsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
