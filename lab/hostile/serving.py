"""A server of the small model in a process of its own, what it holds, and what its log says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mars_gguf.errors import MarsError

START = 120.0  # seconds
COMMAND = [sys.executable, "-m", "mars_gguf.server"]
_ADDRESS = re.compile(r"Uvicorn running on http://[\d.]+:(\d+)")
_LINE = re.compile(r"^(\S+ \S+) INFO POST .* request_id=(\w+)$", re.M)


@dataclass
class Served:
    """A server that runs."""

    process: subprocess.Popen[Any]
    log: Path
    port: int
    _read: int = 0
    _ends: dict[str, float] = field(default_factory=dict)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def ends(self, patience: float = 10.0) -> bool:
        """Tells whether it ends before ``patience`` seconds are over: llama.cpp writes a backtrace
        first, when nobody is answered any more."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        return not self.lives

    def memory(self, what: str = "VmRSS") -> float:
        """Mebibytes that it holds, or with VmHWM that it held at most; NaN if it has ended."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            return int(status.partition(f"{what}:")[2].split()[0]) / 1024
        except (OSError, IndexError):
            return float("nan")

    def end_of(self, request_id: str, patience: float = 20.0) -> float | None:
        """When it was done with a request, as `time.time` counts; None if the log does not say so
        before ``patience`` seconds are over."""
        deadline = time.monotonic() + patience
        while request_id not in self._ends:
            if time.monotonic() > deadline:
                return None
            with self._reading:  # clients ask side by side
                self._read_log()
            time.sleep(0.02)
        return self._ends[request_id]

    def failures(self) -> list[str]:
        """Ids of the requests that its log says it failed at, whether or not a client saw it."""
        return re.findall(r" INFO POST \S+ 500 .*request_id=(\w+)", self.tail(1 << 30))

    def _read_log(self) -> None:
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._read)
            text = file.read()
        whole, _, _ = text.rpartition("\n")
        self._read += len(whole.encode())
        for written, request_id in _LINE.findall(whole):
            when = datetime.strptime(written, "%Y-%m-%d %H:%M:%S,%f")
            self._ends[request_id] = when.replace(tzinfo=timezone.utc).timestamp()

    def tail(self, characters: int = 3000) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]


@contextmanager
def served(*flags: str) -> Iterator[Served]:
    """Context manager: a server of the package's model on a free port of this machine, on one
    thread. Raises MarsError if it does not start."""
    command = [*COMMAND, "--demo", "--host", "127.0.0.1", "--port", "0"]
    command += ["--n_threads", "1", "--n_threads_batch", "1", *flags]
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env=os.environ | {"TZ": "UTC"}
            )
        try:
            yield Served(process, log, _port(process, log))
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()


def _port(process: subprocess.Popen[Any], log: Path) -> int:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        if found := _ADDRESS.search(log.read_text()):
            return int(found[1])
        time.sleep(0.1)
    raise MarsError(f"the server did not start:\n{log.read_text()[-3000:]}")
