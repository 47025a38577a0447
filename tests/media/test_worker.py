"""The process that decodes for the server, asked over its socket as the server asks."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import models
import numpy as np
from PIL import Image

from mars_gguf.media.images import decode_image
from mars_gguf.media.worker import LENGTH, pack

LIMITS = {"max_pixels": 1 << 24, "most_pixels": 1 << 24, "seconds": 30.0}
IMPATIENT = """
import socket
from mars_gguf.media import worker
worker.LAST = -29.9
worker.serve(socket.socket(fileno=0))
"""


class Asked:
    """A worker, and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process, self.connection = process, connection
        self.stream = connection.makefile("rwb")

    def send(self, data: bytes, **asked: Any) -> None:
        self.stream.write(pack(LIMITS | asked | {"size": len(data)}) + data)
        self.stream.flush()

    def head(self, data: bytes, **asked: Any) -> dict[str, Any]:
        self.send(data, **asked)
        (size,) = LENGTH.unpack(self.stream.read(LENGTH.size))
        head: dict[str, Any] = json.loads(self.stream.read(size))
        return head


@contextmanager
def working(*code: str) -> Iterator[Asked]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, *(code or ("-m", "mars_gguf.media.worker"))]
    with ours, subprocess.Popen(command, stdin=theirs.fileno()) as process:
        theirs.close()
        try:
            yield Asked(process, ours)
        finally:
            process.kill()


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_it_answers_with_pixels_or_with_words_until_nobody_asks() -> None:
    with working() as worker:
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
            data = encoded(models.picture(3), form)
            expected = np.asarray(decode_image(io.BytesIO(data), "it"))
            assert worker.head(data) == {"sizes": [list(expected.shape[1::-1])]}
            assert worker.stream.read(expected.nbytes) == expected.tobytes()
            refused = worker.head(data[: len(data) // 2])
            assert refused.keys() == {"error"} and "a picture: " in refused["error"]
            assert "too large" in worker.head(data, max_pixels=9)["error"]
        worker.connection.shutdown(socket.SHUT_RDWR)
        assert worker.process.wait(20) == 0


def test_what_takes_more_memory_than_it_may_is_refused_and_it_goes_on() -> None:
    with working() as worker:
        large = encoded(Image.new("RGB", (9000, 9000)), "BMP")
        found = worker.head(large, max_pixels=1 << 27, most_pixels=1)
        assert found == {"error": "a picture or film takes more than 256 MiB to decode"}
        assert worker.head(encoded(models.picture(0), "PNG")).keys() == {"sizes"}


def test_it_ends_by_itself_when_a_decoder_goes_on_for_too_long() -> None:
    """As it must where no parent is left to end it."""
    with working("-c", IMPATIENT) as worker:
        worker.send(encoded(Image.new("RGB", (4000, 4000)), "PNG"))
        assert worker.process.wait(20) == -signal.SIGALRM
