from __future__ import annotations

import pytest

from mars_gguf.errors import VectorError
from mars_gguf.vectors import format


def test_the_layout_that_is_written_down_has_every_key_and_the_version() -> None:
    said = str(format.__doc__)
    sections = {f"mars.{section}." for section in (*format.BY_MODALITY, *format.FREE)}
    for key in format.KEYS | sections:
        assert key in said
    assert f"u32, {format.VERSION}\n" in said
    assert set(format.OLDER) == set(range(1, format.VERSION))


def test_what_is_not_as_expected_is_named_and_cut_short() -> None:
    format.expect(True, "mars.layer", 9, "1 to 7")
    with pytest.raises(VectorError) as caught:
        format.expect(False, "mars.layer", "9" * 1000, "1 to 7")
    found = "9" * 200
    said = f"mars.layer: found {found}, expected 1 to 7. Convert the model again."
    assert str(caught.value) == said
