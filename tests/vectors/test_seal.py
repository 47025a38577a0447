from __future__ import annotations

import pytest
from vector_files import gguf_file

from mars_gguf.errors import VectorError
from mars_gguf.vectors import parse_vector, sealed


def test_a_file_of_which_any_bit_was_changed_is_refused(tmp_path):
    whole = gguf_file()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VectorError):
            parse_vector(bytes(damaged))


def test_a_changed_file_is_read_once_its_hash_was_put_right():
    whole = gguf_file()
    changed = whole.replace(b"Tiny Chat", b"Tiny Chap")
    with pytest.raises(VectorError, match=r"mars.sha256: found '\w{12}'\.\.\., but the file's"):
        parse_vector(changed)
    assert parse_vector(sealed(changed)).model.name == "Tiny Chap"
    assert sealed(sealed(changed)) == sealed(changed) and sealed(whole) == whole
