"""Encoded pictures are kept within a bound, those used last."""

from __future__ import annotations

import numpy as np
import pytest

from mars_gguf.runtime import encoded
from mars_gguf.runtime.encoded import Encoded


def test_those_used_longest_ago_make_room_and_none_while_all_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ones = np.ones((2, 3), np.float32)
    monkeypatch.setattr(encoded, "MAX_EMBEDDINGS", 2 * ones.nbytes)
    kept = Encoded()
    first, second, third, fourth = ((name, 1) for name in (b"a", b"b", b"c", b"d"))
    for identity in (first, second):
        kept.add(identity, ones)
    assert kept.get(first) is ones
    kept.add(third, ones)
    assert kept.get(second) is None and kept.get(first) is kept.get(third) is ones
    with kept.keeping_all():
        kept.add(fourth, ones)
        assert kept.n_bytes == 3 * ones.nbytes
    assert kept.get(first) is None and kept.get(fourth) is ones
    kept.clear()
    assert kept.n_bytes == 0
