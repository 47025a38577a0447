"""The process that decodes for the server, asked over its socket as the server asks."""

from __future__ import annotations

import io
import json
import os
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
import socket, sys
from mars_gguf.media import worker
worker.LAST = -29.9
worker.serve(socket.socket(fileno=0), int(sys.argv[1]))
"""


class Asked:
    """A worker, our end of its socket, and the file."""

    def __init__(
        self, process: subprocess.Popen[bytes], connection: socket.socket, file: int
    ) -> None:
        self.process, self.connection, self.file = process, connection, file
        self.stream = connection.makefile("rwb")

    def send(self, data: bytes, **asked: Any) -> None:
        os.pwrite(self.file, data, 0)
        self.stream.write(pack(LIMITS | asked | {"size": len(data)}))
        self.stream.flush()

    def ask(self, data: bytes, **asked: Any) -> dict[str, Any]:
        self.send(data, **asked)
        (size,) = LENGTH.unpack(self.stream.read(LENGTH.size))
        answer: dict[str, Any] = json.loads(self.stream.read(size))
        return answer


@contextmanager
def working(*code: str) -> Iterator[Asked]:
    ours, theirs = socket.socketpair()
    file = os.memfd_create("pictures")
    command = [sys.executable, *(code or ("-m", "mars_gguf.media.worker")), str(file)]
    with (
        ours,
        theirs,
        subprocess.Popen(command, stdin=theirs.fileno(), pass_fds=[file]) as process,
    ):
        try:
            yield Asked(process, ours, file)
        finally:
            process.kill()
            os.close(file)


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_it_answers_with_pixels_or_with_words_until_nobody_asks() -> None:
    with working() as worker:
        for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
            data = encoded(models.picture(3), form)
            expected = np.asarray(decode_image(io.BytesIO(data), "it"))
            assert worker.ask(data) == {"sizes": [list(expected.shape[1::-1])]}
            assert os.pread(worker.file, expected.nbytes, 0) == expected.tobytes()
            refused = worker.ask(data[: len(data) // 2])
            assert refused.keys() == {"error"} and "a picture: " in refused["error"]
            assert "too large" in worker.ask(data, max_pixels=9)["error"]
        worker.connection.shutdown(socket.SHUT_RDWR)
        assert worker.process.wait(20) in (0, -signal.SIGKILL)


def test_what_takes_more_memory_than_it_may_is_refused_and_it_goes_on() -> None:
    with working() as worker:
        large = encoded(Image.new("RGB", (9000, 9000)), "BMP")
        found = worker.ask(large, max_pixels=1 << 27, most_pixels=1)
        assert found == {"error": "a picture or film takes more than 256 MiB to decode"}
        assert worker.ask(encoded(models.picture(0), "PNG")).keys() == {"sizes"}


def test_it_ends_by_itself_when_a_decoder_goes_on_for_too_long() -> None:
    """As it must where no parent is left to end it."""
    with working("-c", IMPATIENT) as worker:
        worker.send(encoded(Image.new("RGB", (4000, 4000)), "PNG"))
        assert worker.process.wait(20) == -signal.SIGALRM
