from __future__ import annotations

import pytest

from lab.reader.grid import GRID, TooLong, Writer, is_readable


def test_a_text_with_more_tokens_than_cells_is_refused(writer: Writer) -> None:
    with pytest.raises(TooLong, match=f"room for {GRID * GRID}"):
        writer.picture(" and" * (GRID * GRID + 1))


def test_rare_tokens_are_read_only_where_they_begin_a_word() -> None:
    assert is_readable(" umbrella", 90_000) and is_readable("um", 2_000)
    assert not is_readable("umb", 90_000) and not is_readable(" caf\u00e9", 1)
