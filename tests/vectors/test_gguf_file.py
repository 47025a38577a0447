from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from vector_files import ARRAY, KEYS, STRING, U32, U64, array, gguf_file, string, text, u32

from mars_gguf.errors import VectorError
from mars_gguf.vectors.gguf_file import GgufFile


def refused(data: bytes) -> str:
    with pytest.raises(VectorError) as caught:
        GgufFile(data)
    return str(caught.value)


HUGE = [2**31, 2**32 - 1, 2**60, 2**62, 2**63, 2**64 - 1]


def lying(count: int) -> dict[str, bytes]:
    """Files that claim ``count`` of something."""
    length, u32_ = struct.pack("<Q", count), struct.pack("<I", U32)
    return {
        "keys": gguf_file(n_keys=count),
        "tensors": gguf_file(n_tensors=count),
        "bytes of a key": gguf_file(further=length + b"mars" + u32_, n_keys=len(KEYS) + 1),
        "bytes of a string": gguf_file({"x": (STRING, length + b"mars")}),
        "bytes of an item": gguf_file({"x": array(STRING, 2, text("a") + length)}),
        **{
            f"items of type {item}": gguf_file({"x": array(item, count, bytes(64))})
            for item in range(13)
        },
        "values of the tensor": gguf_file(tensors=[("direction.3", [count], 0, 0)]),
        "bytes before the tensor": gguf_file(tensors=[("direction.3", [4], 0, count)]),
        "bytes of alignment": gguf_file({"general.alignment": (U64, length)}),
    }


@pytest.mark.parametrize("count", HUGE)
def test_sizes_are_bounded_before_anything_is_allocated(count):
    for what, content in lying(count).items():
        tracemalloc.start()
        refused(content)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20, what


def test_arrays_within_arrays_are_refused_at_any_depth():
    nested = b""
    for _ in range(5000):
        nested = struct.pack("<IQ", ARRAY, 1) + nested
    expected = "an array of 1 values of type 9: not expected here"
    assert refused(gguf_file({"x": (ARRAY, nested)})) == expected


TWO = [("direction.3", [4], 0, 0), ("direction.4", [4], 0, 32)]
BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "truncated"),
    (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    (gguf_file()[:4][::-1] + gguf_file()[4:], "not a GGUF file"),
    (gguf_file(version=1), "GGUF version 1, expected 2 or 3"),
    (gguf_file(version=0x03000000), "GGUF version 50331648"),
    (gguf_file({"x": string(b"\xff\xfe")}), "not UTF-8"),
    (gguf_file({"x": (13, b"")}), "unknown GGUF value type 13"),
    (gguf_file({"x": array(13, 1, b"")}), "an array of 1 values of type 13"),
    (
        gguf_file(further=text("mars.layer") + struct.pack("<II", U32, 3), n_keys=len(KEYS) + 1),
        "key 'mars.layer' appears twice",
    ),
    (gguf_file(tensors=TWO, data=np.zeros(12)), "2 tensors, expected"),
    (gguf_file(tensors=[]), "0 tensors, expected"),
    (gguf_file(tensors=[("direction.3", [2, 2], 0, 0)]), "has 2 dimensions, expected 1"),
    (gguf_file(tensors=[("direction.3", [], 0, 0)]), "has 0 dimensions, expected 1"),
    (gguf_file(tensors=[("direction.3", [4], 1, 0)]), "has type 1, expected 0 (F32)"),
    (gguf_file({"general.alignment": u32(0)}), "general.alignment: found 0, expected 1 to 4096"),
    (gguf_file({"general.alignment": string("a")}), "general.alignment: found 'a'"),
]


@pytest.mark.parametrize(("content", "cause"), BAD_FILES, ids=[c for _, c in BAD_FILES])
def test_a_damaged_file_is_refused_naming_the_cause(content, cause):
    assert cause in refused(content)
