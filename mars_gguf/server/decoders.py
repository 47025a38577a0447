"""Has pictures and films that clients send decoded by processes that can be ended: too slow, too
large, or brought down by a file, one costs its client a 400, and another takes its place."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from mars_gguf.media.picture import Picture
from mars_gguf.media.worker import LENGTH, pack
from mars_gguf.server.http_errors import ClientGone, RequestError
from mars_gguf.server.request_limits import exceeded
from mars_gguf.server.sharing import Line

# Without Pillow's warnings: of a damaged picture, one for each of what may be thousands of tags.
COMMAND = [sys.executable, "-W", "ignore", "-m", "mars_gguf.media.worker"]
WORKERS = 2  # a picture takes some 100 MB while it is decoded
POLL = 0.1  # seconds after which a client that has left is noticed
GRACE = 0.5  # seconds in which a worker may say itself that it is too late
MAX_ANSWER = 1 << 20  # bytes of words and sizes

log = logging.getLogger("mars_gguf.server")
DECODERS = Line(WORKERS)


def decode(
    asked: dict[str, int],
    deadline: float,
    data: bytes,
    require_wanted: Callable[[], object] = lambda: None,
) -> list[Picture]:
    """Decodes the picture in ``data`` or, if ``asked`` has max_frames, the film, as `media.worker`
    does.

    asked: max_pixels of what is returned, most_pixels of any picture; max_frames.
    deadline: in the clock of time.monotonic.
    require_wanted: called all the while; what it raises ends this.

    Raises RequestError, with the worker's own words if it refuses.
    """
    if time.monotonic() >= deadline:  # others took the time
        raise exceeded("media_seconds", what="decode")
    worker = _idle.pop() if _idle else Worker()
    if worker.process.poll() is not None:  # it has ended meanwhile, for want of memory, say
        worker.end()
        worker = Worker()
    try:
        answer = worker.ask(asked, deadline, data, require_wanted)
    except (RequestError, ClientGone):
        worker.end()
        raise
    except Exception as error:  # no answer, or none that makes sense
        how = worker.end()
        log.warning("a decoder of pictures ended (%s); another takes its place", how)
        raise RequestError(
            f"a picture or film could not be decoded: its decoder ended ({how})"
        ) from error
    os.ftruncate(worker.file, 0)
    _idle.append(worker)
    if isinstance(answer, str):
        raise RequestError(answer)
    return answer


class Worker:
    """A process that decodes pictures, one at a time."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.file = os.memfd_create("pictures")
        with theirs:
            self.process = subprocess.Popen(
                [*COMMAND, str(self.file)],
                pass_fds=[self.file],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
            )

    def ask(
        self,
        asked: dict[str, int],
        deadline: float,
        data: bytes,
        require_wanted: Callable[[], object],
    ) -> list[Picture] | str:
        """Pictures, or why there are none. Raises RequestError if it takes too long, what
        ``require_wanted`` raises, and anything else if it gives no answer."""
        self.deadline, self.require_wanted = deadline + GRACE, require_wanted
        seconds = max(deadline - time.monotonic(), 0.0)
        os.pwrite(self.file, data, 0)
        self.socket.settimeout(POLL)
        self.socket.sendall(pack(asked | {"size": len(data), "seconds": seconds}))
        (size,) = LENGTH.unpack(self._receive(LENGTH.size))
        answer = json.loads(self._receive(min(size, MAX_ANSWER)))
        if "error" in answer:
            return str(answer["error"])[:500]
        sizes = [(int(width), int(height)) for width, height in answer["sizes"]]
        total = sum(width * height for width, height in sizes)
        if not sizes or min(map(min, sizes)) < 1 or total > asked["max_pixels"]:
            raise ValueError("pictures of a size that was not asked for")
        pictures, place = list[Picture](), 0
        for width, height in sizes:
            pictures.append(Picture(width, height, os.pread(self.file, 3 * width * height, place)))
            place += 3 * width * height
        return pictures

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            self.require_wanted()
            if time.monotonic() >= self.deadline:
                raise exceeded("media_seconds", what="decode")
            with suppress(TimeoutError):
                more = self.socket.recv(size - len(found))
                if not more:
                    raise EOFError
                found += more
        return found

    def end(self) -> str:
        """Ends the process; tells how, which may have been before."""
        self.socket.close()
        os.close(self.file)
        self.process.kill()
        code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


_idle: list[Worker] = []


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()
