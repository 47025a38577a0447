"""Terminals to look at: one of tmux with a command in it, and one that keeps what it was shown."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console


class Screen:
    """A terminal of tmux with a command in it."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        if not shutil.which("tmux"):
            pytest.skip("tmux is not installed")
        self.socket = str(folder / f"tmux{len(list(folder.iterdir()))}")
        environment = {k: v for k, v in os.environ.items() if k != "TMUX"}
        environment |= {"LANG": "C.UTF-8", "TERM": "xterm-256color"}
        line = f"{shlex.join(command)}; echo ended with $?; exec sleep 1000"
        subprocess.run(
            ["tmux", "-S", self.socket, "-f/dev/null", "new-session", "-d", "-x100", "-y50", line],
            check=True,
            env=environment,
        )

    def tmux(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-S", self.socket, *arguments], capture_output=True, text=True, check=True
        ).stdout

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def read(self, colours: bool = False) -> str:
        return self.tmux("capture-pane", "-p", "-J", "-S-200", *(["-e"] if colours else []))

    def wait_for(self, pattern: str) -> str:
        """What the screen shows, once it matches."""
        deadline = time.monotonic() + 90
        while not re.search(pattern, shown := self.read(), re.MULTILINE):
            assert time.monotonic() < deadline, f"no {pattern!r} in\n{shown}"
            time.sleep(0.1)
        return shown


def keeping(width: int = 90) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def text_of(console: Console) -> str:
    """All that was printed, less the codes that move the cursor."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
