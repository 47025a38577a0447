"""The processes that decode for the server: brought down, stuck, taken over; and others after."""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from exif import ODD

from mars_gguf.media.images import decode_image, pixels_of
from mars_gguf.media.picture import Picture
from mars_gguf.media.worker import pack
from mars_gguf.server import decoders
from mars_gguf.server.http_errors import RequestError

LIMITS = {"max_pixels": 1 << 20, "most_pixels": 1 << 20}
SLOW = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"!\xfe\1a\0" * 4_000_000  # comments


def png(seed: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    models.picture(seed).save(buffer, "PNG", **options)
    return buffer.getvalue()


def decoded(data: bytes, seconds: float = 30.0, **limits: int) -> Picture:
    (found,) = decoders.decode(LIMITS | limits, time.monotonic() + seconds, data)
    return found


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Every test begins without workers, and leaves none."""
    decoders._end_all()
    yield
    decoders._end_all()


def pid() -> int:
    """The worker's, which is idle."""
    (worker,) = decoders._idle
    return worker.process.pid


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() if Path("/proc/self").exists() else True


def test_pictures_are_decoded_one_after_another_by_one_process_as_here() -> None:
    decoded(png())
    first = pid()
    for data in (png(1), png(2, exif=ODD["two orientations"])):
        assert decoded(data) == pixels_of(decode_image(io.BytesIO(data), "it"))
    with pytest.raises(RequestError, match="a picture: not a picture; found 4 bytes") as refused:
        decoded(b"text")
    assert refused.value.status == 400
    with pytest.raises(RequestError, match="takes too long"):
        decoded(png(), -1)
    assert pid() == first


@pytest.mark.parametrize("sent", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_decoder_that_is_brought_down_is_said_so_and_replaced(
    sent: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    decoded(png())
    first = pid()
    threading.Timer(0.3, os.kill, (first, sent)).start()
    with pytest.raises(RequestError, match=rf"its decoder ended \({sent.name}\)") as ended:
        decoded(SLOW)
    assert ended.value.status == 400
    assert f"a decoder of pictures ended ({sent.name})" in caplog.text
    assert decoded(png()).width == 48
    assert pid() != first and gone(first)


def test_a_decoder_that_is_stuck_is_ended_soon_after_the_time_for_it() -> None:
    decoded(png())
    first, began = pid(), time.monotonic()
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(RequestError, match="takes too long to decode"):
        decoded(png(), 0.5)
    assert time.monotonic() - began < 5
    assert gone(first)
    decoded(png())


def test_a_decoder_that_has_ended_while_idle_costs_nobody_a_picture() -> None:
    decoded(png())
    os.kill(pid(), signal.SIGKILL)
    time.sleep(0.2)
    assert decoded(png()).width == 48


class Evil:
    """Pickled, it is a command."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def raw(head: bytes) -> bytes:
    return struct.pack(">I", len(head)) + head


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0",
        raw(b"") + bytes(100),
        raw(b"{"),
        raw(b"[" * 100_000),
        raw(b"[]"),
        raw(pickle.dumps(Evil())),
        b"\xff\xff\xff\xff" + bytes(2 << 20),
        pack({"sizes": []}),
        pack({"sizes": [[1, -1]]}),
        pack({"sizes": [[0, 5]]}),
        pack({"sizes": [[1 << 20, 1 << 20]]}),
        pack({"sizes": [[1 << 20, 1]] * 2}),
        pack({"sizes": [["a", None]]}),
        pack({"sizes": [[float("inf"), 1]]}),
        pack({"sizes": [[48, 48]]}) + bytes(100),
    ],
)
def test_a_decoder_that_was_taken_over_can_say_nothing_but_pixels(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answer").write_bytes(answer)
    code = "import os, sys; os.write(0, open('answer', 'rb').read())"
    monkeypatch.setattr(decoders, "COMMAND", [sys.executable, "-c", code])
    with pytest.raises(RequestError, match="could not be decoded: its decoder ended"):
        decoded(png(), 5)
    assert [path.name for path in tmp_path.iterdir()] == ["answer"]
    assert not decoders._idle


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.write(0, b'\\xff' * 4)\nwhile True: os.write(0, bytes(1 << 16))",
        "import os, sys, time; os.ftruncate(int(sys.argv[1]), 1 << 23); "
        f"os.write(0, {pack({'sizes': [[1025, 1024]]})!r}); time.sleep(9)",
    ],
    ids=["endless", "larger than asked"],
)
def test_no_more_is_taken_from_a_decoder_than_was_asked_for(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "COMMAND", [sys.executable, "-c", code])
    with pytest.raises(RequestError, match="could not be decoded: its decoder ended"):
        decoded(png(), 5)


def test_what_a_decoder_says_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answer").write_bytes(pack({"error": "x" * 100_000}))
    code = "import os, time; os.write(0, open('answer', 'rb').read()); time.sleep(9)"
    monkeypatch.setattr(decoders, "COMMAND", [sys.executable, "-c", code])
    with pytest.raises(RequestError, match="^x{500}$"):
        decoded(png(), 5)


@pytest.fixture
def endless_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A module in PyAV's place, which decodes for ever. Waits until it runs; its place in /proc."""
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    (tmp_path / "av.py").write_text(code + "time.sleep(100)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def begun() -> Path:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            time.sleep(0.05)
        return Path("/proc", (tmp_path / "pid").read_text())

    return begun


def ended(process: Path) -> bool:
    status = process / "status"
    return not status.exists() or "zombie" in status.read_text()


ASK = """
import time
from mars_gguf.server import decoders
asked = {"max_pixels": 9, "most_pixels": 9, "max_frames": 4}
decoders.decode(asked, time.monotonic() + 60, bytes(100))
"""


def test_no_process_is_left_where_the_server_is_killed(
    endless_film: Callable[[], Path],
) -> None:
    with subprocess.Popen([sys.executable, "-c", ASK]) as server:
        worker = endless_film()
        server.kill()
    deadline = time.monotonic() + 5
    while not ended(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
