"""Decoded pictures are known by what they show."""

from __future__ import annotations

import pytest

from mars_gguf.media.picture import Picture


def test_pictures_are_alike_if_their_sizes_and_pixels_are() -> None:
    pictures = Picture(2, 1, b"abcdef"), Picture(2, 1, b"abcdef"), Picture(1, 2, b"abcdef")
    first, same, other = pictures
    assert first == same != other
    assert first.sha256 == same.sha256 != other.sha256
    assert len(set(pictures)) == 2
    assert "abc" not in repr(first)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 1), (-2, -1)])
def test_pixels_that_are_not_of_the_size_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="found 6 bytes"):
        Picture(*size, b"abcdef")
