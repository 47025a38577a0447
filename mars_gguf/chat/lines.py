"""Reads what a person types: lines, and the paths in them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mars_gguf.errors import MarsError

ReadLine = Callable[[str], str]


def line_editor(commands: Iterable[str]) -> ReadLine:
    """Makes a reader of lines with editing, the history of this session, and completion of
    ``commands`` and paths by Tab."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import (
        Completer,
        NestedCompleter,
        PathCompleter,
        WordCompleter,
        merge_completers,
    )

    path = PathCompleter(expanduser=True)
    words = [command.split() for command in commands]
    options: dict[str, Completer | None] = {
        first: path if rest in (["PATH"], ["FILE"]) else None for first, *rest in words
    }
    # By itself the second takes the slash for a word of its own, and knows no "/he".
    completers = [WordCompleter(list(options), sentence=True), NestedCompleter(options)]
    session: PromptSession[str] = PromptSession(
        completer=merge_completers(completers, deduplicate=True), complete_while_typing=False
    )
    return session.prompt


def read_plainly(prompt: str) -> str:
    """Reads a line, asked for on standard error: standard output is a file, or somebody's input."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def typed_path(argument: str, command: str) -> str:
    """Reads a path as people type it or drop it onto a terminal: with ~, quotes or backslashes."""
    if not argument:
        raise MarsError(f"{command} needs a path")
    if "\0" in argument:
        raise MarsError(f"{argument}: no file has a name with the character 0 in it")
    if not Path(argument).exists():
        with suppress(ValueError):  # of quotes that do not match: taken literally
            argument = " ".join(shlex.split(argument)) if os.sep == "/" else argument.strip("\"'")
    return os.path.expanduser(argument)
