"""The vector file: a GGUF control vector that stock llama.cpp loads, with the MARS geometry in
its metadata (mars_gguf.vectors.format)."""

from __future__ import annotations

from mars_gguf.errors import VectorError
from mars_gguf.vectors.fingerprint import ModelFingerprint
from mars_gguf.vectors.format import MAX_FILE_BYTES, Value
from mars_gguf.vectors.reader import parse_vector, read_vector
from mars_gguf.vectors.seal import sealed
from mars_gguf.vectors.vector import Vector
from mars_gguf.vectors.writer import write_contents, write_vector

__all__ = [
    "MAX_FILE_BYTES", "ModelFingerprint", "Value", "Vector", "VectorError", "parse_vector",
    "read_vector", "sealed", "write_contents", "write_vector",
]  # fmt: skip
