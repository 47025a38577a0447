"""The hash that a vector file holds of itself.

It is the SHA-256 of all the file's bytes, the digits of the hash itself taken for zeros. So a
damaged bit anywhere is noticed, which no check of the values can do.
"""

from __future__ import annotations

import hashlib

from mars_gguf.errors import VectorError
from mars_gguf.vectors.format import HASH
from mars_gguf.vectors.gguf_file import GgufFile

BLANK = "0" * 64


def sealed(data: bytes, file: GgufFile | None = None) -> bytes:
    """Puts the hash in the bytes of a vector file right; ``file``: what was read from them, if it
    was.

    Raises VectorError for what is no GGUF file, or has no place for the hash.
    """
    place = _place(file or GgufFile(data))
    return data[:place] + _digest(data, place).encode() + data[place + len(BLANK) :]


def require_seal(data: bytes, file: GgufFile) -> None:
    """Raises VectorError unless ``file``, which was read from ``data``, holds the hash of it."""
    place, found = _place(file), file.keys[HASH]
    if found != _digest(data, place):
        raise VectorError(
            f"{HASH}: found {found[:12]!r}..., but the file's content has another hash: it is "
            "damaged, or was changed after it was written. Copy it again, or convert the model "
            "again."
        )


def _place(file: GgufFile) -> int:
    value = file.keys.get(HASH)
    if not (isinstance(value, str) and len(value) == len(BLANK) and value.isascii()):
        raise VectorError(f"{HASH}: found {value!r:.80}, expected 64 hexadecimal digits")
    return file.places[HASH]


def _digest(data: bytes, place: int) -> str:
    view = memoryview(data)
    digest = hashlib.sha256(view[:place])
    digest.update(BLANK.encode())
    digest.update(view[place + len(BLANK) :])
    return digest.hexdigest()
