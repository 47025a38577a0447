"""Reads what the URL of a picture names, bounded in bytes and time."""

from __future__ import annotations

import base64
import binascii
import threading
import time
from pathlib import Path

from mars_gguf.errors import PromptError

MAX_BYTES = 64 << 20  # of a picture that an address answers with
SECONDS = 20.0  # in which that must have come


def load_url(url: str, *, allow_local_files: bool = False) -> bytes:
    """The content of a data URL, or the answer of an http or https address, at most MAX_BYTES and
    within SECONDS; with ``allow_local_files``, of a file, too. Raises PromptError for another URL
    or a larger picture, OSError for an address that does not answer."""
    header, _, content = url.partition(",")
    scheme = url.partition(":")[0].lower()
    if scheme == "data" and header.endswith(";base64"):
        try:
            return base64.b64decode(content)
        except binascii.Error as error:
            raise PromptError(f"a picture's data URL is not base64: {error}") from error
    import urllib.request  # takes a moment to import, and is seldom needed

    if scheme == "file" and allow_local_files:
        path = Path(urllib.request.url2pathname(url.removeprefix("file://")))
        if not path.is_file():  # a device or a pipe may never end
            raise PromptError(f"a picture's address: {path} is no file")
        with path.open("rb") as file:
            found = file.read(MAX_BYTES + 1)
    elif scheme in ("http", "https"):
        found = _fetch(url)
    else:
        raise PromptError(
            f"a picture's address: found {header:.40}, expected data:image/...;base64, http:// or "
            "https:// (or file:// with allow_local_files=True)"
        )
    if len(found) > MAX_BYTES:
        raise PromptError(f"a picture of more than {MAX_BYTES} bytes: show a smaller one")
    return found


def _fetch(url: str) -> bytes:
    """The answer of an address, up to a little more than MAX_BYTES. A thread waits for it: a socket
    knows a time for each read alone, and a byte now and then would come for ever."""
    import urllib.request

    found, failed, ends = bytearray(), list[Exception](), time.monotonic() + SECONDS

    def read() -> None:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                while len(found) <= MAX_BYTES and time.monotonic() < ends:
                    if not (piece := answer.read1(1 << 16)):
                        break
                    found.extend(piece)
        except Exception as error:
            failed.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(SECONDS)
    if reading.is_alive() or time.monotonic() >= ends:
        raise TimeoutError(f"timed out: a picture's address took more than {SECONDS:g} s to answer")
    for error in failed:
        if isinstance(error, OSError):
            raise error
        # What is no address or no answer of HTTP, of which urllib has many errors.
        raise PromptError(f"a picture's address could not be read: {error}") from error
    return bytes(found)
