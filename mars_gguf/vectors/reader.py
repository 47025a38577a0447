"""A GGUF reader for untrusted files that hold one vector."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np

from mars_gguf.errors import VectorError
from mars_gguf.steering import Array

MAX_KEYS = 1024
MAX_STRING_BYTES = 1 << 20

# GGUF value types (gguf.md): struct formats of the scalars, then string and array.
_SCALARS = ["B", "b", "H", "h", "I", "i", "f", "?", "Q", "q", "d"]
_SCALAR_TYPES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), _SCALARS, strict=True))
_STRING, _ARRAY = 8, 9
_F32 = 0  # of tensors


class Reader:
    """A GGUF reader for untrusted files: lengths are compared with what is left of the file
    before anything of that length is read, and counts are bounded."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self._bytes(4) != b"GGUF":
            raise VectorError("not a GGUF file (the first four bytes are not 'GGUF')")
        version = self._scalar("I")
        if version not in (2, 3):
            raise VectorError(f"GGUF version {version}, expected 2 or 3")
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        if n_keys > MAX_KEYS or n_tensors != 1:
            raise VectorError(
                f"{n_keys} keys and {n_tensors} tensors, expected at most {MAX_KEYS} and exactly "
                "1. Is it a model, or a control vector made by another tool?"
            )
        keys: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            if key in keys:
                raise VectorError(f"key {key!r} appears twice")
            keys[key] = self._value(self._scalar("I"))
        return keys, dict([self._tensor(keys)])

    def _tensor(self, keys: dict[str, Any]) -> tuple[str, Array]:
        name, n_dims = self._string(), self._scalar("I")
        if n_dims != 1:
            raise VectorError(f"tensor {name!r} has {n_dims} dimensions, expected 1")
        length, kind, offset = self._scalar("Q"), self._scalar("I"), self._scalar("Q")
        if kind != _F32:
            raise VectorError(f"tensor {name!r} has type {kind}, expected 0 (F32)")
        alignment = keys.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 4096:
            raise VectorError(f"general.alignment: found {alignment}, expected 1 to 4096")
        start = -(-self.file.tell() // alignment) * alignment + offset
        if start + 4 * length > self.size:
            raise VectorError(f"truncated: tensor {name!r} ends past the end of the file")
        self.file.seek(start)
        return name, np.frombuffer(self._bytes(4 * length), "<f4").astype(np.float32)

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise VectorError(f"truncated: {count} bytes expected at offset {self.file.tell()}")
        return self.file.read(count)

    def _scalar(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self._bytes(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > MAX_STRING_BYTES:
            raise VectorError(f"a string of {length} bytes, expected at most {MAX_STRING_BYTES}")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise VectorError("a string that is not UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind in _SCALAR_TYPES:
            return self._scalar(_SCALAR_TYPES[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise VectorError(f"unknown GGUF value type {kind}")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALAR_TYPES:
            dtype = np.dtype("<" + _SCALAR_TYPES[item])
            return np.frombuffer(self._bytes(dtype.itemsize * count), dtype).copy()
        if item == _STRING and count <= MAX_KEYS:
            return [self._string() for _ in range(count)]
        raise VectorError(f"an array of {count} values of type {item}: not expected here")
