"""The package's commands, run within a test as ``python -m`` runs them."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch


def command(module: str) -> Callable[[Sequence[str]], None]:
    """The command ``python -m MODULE``, as a function of its arguments."""
    return partial(_run, module)


def _run(module: str, arguments: Sequence[str]) -> None:
    with patch("sys.argv", [module, *arguments]):
        runpy.run_module(module, run_name="__main__")


convert = command("mars_gguf.convert")
