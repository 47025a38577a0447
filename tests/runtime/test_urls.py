"""What the URL of a picture names is read within bounds, or refused."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mars_gguf.errors import PromptError
from mars_gguf.runtime import urls
from mars_gguf.runtime.urls import load_url

OK = b"HTTP/1.0 200 OK\r\n\r\n"


@contextmanager
def answering(answer: bytes, drips: int = 0) -> Iterator[str]:
    """Context manager: the address of a server that answers so, and then a byte now and then."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(ConnectionError):
                        connection.recv(1 << 16)
                        connection.sendall(answer)
                        for _ in range(drips):
                            connection.sendall(b"a")
                            time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/picture.png"


@pytest.mark.parametrize("beginning", [b"", OK, b"HTTP/1.1 200 OK\r\nX: "])
def test_an_address_that_answers_a_byte_now_and_then_is_given_up(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "SECONDS", 0.5)
    began = time.monotonic()
    with answering(beginning, 100) as url, pytest.raises(OSError, match="more than 0.5 s"):
        load_url(url)
    assert time.monotonic() - began < 2


def test_what_is_no_answer_and_no_address_is_said_to_be_none() -> None:
    with answering(b"HTTP/1.0 no number\r\n\r\n") as url:
        for odd in (url, "http://a b/", "http://[::1", "http://127.0.0.1:port/"):
            with pytest.raises(PromptError, match="a picture's address could not be read"):
                load_url(odd)


def test_no_more_is_read_than_a_picture_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "MAX_BYTES", 9)
    file = tmp_path / "picture.png"
    for answer in (b"123456789", b"1234567890"):
        file.write_bytes(answer)
        with answering(OK + answer) as url:
            for address in (url, file.as_uri()):
                if len(answer) == 9:
                    assert load_url(address, allow_local_files=True) == answer
                else:
                    with pytest.raises(PromptError, match="more than 9 bytes"):
                        load_url(address, allow_local_files=True)


def test_files_are_read_where_that_is_allowed_and_they_are_files(tmp_path: Path) -> None:
    file, pipe = tmp_path / "a picture.png", tmp_path / "pipe.png"
    file.write_bytes(b"pixels")
    os.mkfifo(pipe)
    assert load_url(file.as_uri(), allow_local_files=True) == b"pixels"
    with pytest.raises(PromptError, match=r"found file://.*allow_local_files=True"):
        load_url(file.as_uri())
    for odd in (pipe, Path("/dev/zero"), tmp_path, tmp_path / "none.png"):
        with pytest.raises(PromptError, match="is no file"):
            load_url(odd.as_uri(), allow_local_files=True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        *((url, "address: found") for url in ("ftp://127.0.0.1/a.png", "a.png", "")),
        ("data:image/png,abc", "address: found data:image/png, expected data:image/...;base64"),
        ("data:image/png;base64,a", "data URL is not base64"),
    ],
)
def test_other_addresses_are_refused(url: str, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        load_url(url, allow_local_files=True)
