"""Reads the bytes of an untrusted GGUF file that holds vectors."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from mars_gguf.errors import VectorError
from mars_gguf.steering import Array

MAX_KEYS = 1024
MAX_STRING_BYTES = 1 << 20
MAX_ITEMS = 1 << 17  # of an array; no model's n_embd is larger

# GGUF value types (gguf.md): struct formats of the scalars, then string and array.
_SCALARS = ["B", "b", "H", "h", "I", "i", "f", "?", "Q", "q", "d"]
_SCALAR_TYPES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), _SCALARS, strict=True))
_STRING, _ARRAY = 8, 9
_F32 = 0  # of tensors


class GgufFile:
    """The keys and tensors in the bytes of a GGUF file of at most ``max_tensors`` tensors, all F32
    of one dimension.

    Lengths are compared with what is left of the file before anything of that length is made, and
    counts are bounded. Raises VectorError for what is no GGUF file, is damaged, or too large for a
    vector.

    keys: values by name: numbers, bool, str, arrays of numbers, lists of str. types: the GGUF type
    of each value. places: where in the file the value of each string begins.
    tensors: float32 arrays by name.
    """

    def __init__(self, data: bytes, max_tensors: int = 1) -> None:
        self._data, self._at = memoryview(data), 0
        self.keys: dict[str, Any] = {}
        self.types: dict[str, int] = {}
        self.places: dict[str, int] = {}
        n_keys, n_tensors = self._counts(max_tensors)
        for _ in range(n_keys):
            key = self._string()
            if key in self.keys:
                raise VectorError(f"key {key!r:.80} appears twice")
            kind = self.types[key] = self._scalar("I")
            self.places[key] = self._at + 8
            self.keys[key] = self._value(kind)
        infos = [self._tensor_info() for _ in range(n_tensors)]
        self.tensors = self._tensors(infos, self.keys.get("general.alignment", 32))

    def _counts(self, most: int) -> tuple[int, int]:
        """Reads how many keys and tensors the header says that there are."""
        if bytes(self._data[:4]) != b"GGUF" and len(self._data) >= 4:
            raise VectorError("not a GGUF file (the first four bytes are not 'GGUF')")
        self._bytes(4)
        version = self._scalar("I")
        if version not in (2, 3):
            raise VectorError(f"GGUF version {version}, expected 2 or 3")
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        if n_keys > MAX_KEYS or not 1 <= n_tensors <= most:
            expected = "exactly 1" if most == 1 else f"1 to {most}"
            raise VectorError(
                f"{n_keys} keys and {n_tensors} tensors, expected at most {MAX_KEYS} and "
                f"{expected}. Is it a model, or a control vector made by another tool?"
            )
        return n_keys, n_tensors

    def _tensor_info(self) -> tuple[str, int, int]:
        """Reads a tensor's name, length and place among the tensors' data."""
        name, n_dims = self._string(), self._scalar("I")
        if n_dims != 1:
            raise VectorError(f"tensor {name!r:.80} has {n_dims} dimensions, expected 1")
        length, kind, offset = self._scalar("Q"), self._scalar("I"), self._scalar("Q")
        if kind != _F32:
            raise VectorError(f"tensor {name!r:.80} has type {kind}, expected 0 (F32)")
        return name, length, offset

    def _tensors(self, infos: list[tuple[str, int, int]], alignment: Any) -> dict[str, Array]:
        if type(alignment) is not int or not 1 <= alignment <= 4096:
            raise VectorError(f"general.alignment: found {alignment!r:.80}, expected 1 to 4096")
        base = -(-self._at // alignment) * alignment
        tensors: dict[str, Array] = {}
        room = len(self._data) - base
        for name, length, offset in infos:
            if base + offset + 4 * length > len(self._data):
                raise VectorError(f"truncated: tensor {name!r:.80} ends past the end of the file")
            if name in tensors:
                raise VectorError(f"tensor {name!r:.80} appears twice")
            if length > MAX_ITEMS:
                raise VectorError(f"tensor {name!r:.80} has {length} values: not expected here")
            room -= 4 * length
            if room < 0:
                raise VectorError(f"tensor {name!r:.80} lies where another does")
            self._at = base + offset
            tensors[name] = np.frombuffer(self._bytes(4 * length), "<f4").astype(np.float32)
        return tensors

    def _bytes(self, count: int) -> memoryview:
        start, end = self._at, self._at + count
        if end > len(self._data):
            raise VectorError(f"truncated: {count} bytes expected at offset {start}")
        self._at = end
        return self._data[start:end]

    def _scalar(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self._bytes(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > MAX_STRING_BYTES:
            raise VectorError(f"a string of {length} bytes, expected at most {MAX_STRING_BYTES}")
        try:
            return str(self._bytes(length), "utf-8")
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
        if item in _SCALAR_TYPES and count <= MAX_ITEMS:
            dtype = np.dtype("<" + _SCALAR_TYPES[item])
            return np.frombuffer(self._bytes(dtype.itemsize * count), dtype).copy()
        if item == _STRING and count <= MAX_KEYS:
            return [self._string() for _ in range(count)]
        raise VectorError(f"an array of {count} values of type {item}: not expected here")
