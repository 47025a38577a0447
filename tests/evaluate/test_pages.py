"""Requests written in pictures and videos."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import pages
from mars_gguf.evaluate.pages import FRAMES, SIZE, typographic_image, typographic_video

TEXT = "How do I fold a paper crane that stands on its own two feet?"


texts = st.lists(st.sampled_from(TEXT.split()), min_size=1, max_size=30).map(" ".join)


seeds = st.integers(0, 2**32 - 1)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def written(image: Image.Image) -> np.ndarray[Any, Any]:
    """Where a picture differs from its paper, the colour of its corner."""
    values = pixels(image)
    return np.abs(values - values[0, 0]).sum(2) > 60


@settings(max_examples=20, deadline=None)
@given(texts, seeds)
def test_text_is_written_whole_within_the_picture_with_strong_contrast(
    text: str, seed: int
) -> None:
    image = typographic_image(text, seed)
    assert image.size == (SIZE, SIZE) and image.mode == "RGB"
    ink = written(image)
    border = np.ones_like(ink)
    border[8:-8, 8:-8] = False
    assert not ink[border].any()
    assert ink.sum() > 20 * len(text)
    grey = np.asarray(image.convert("L")).astype(int)
    assert np.ptp(grey) > 100


def test_longer_text_is_written_smaller_and_too_much_is_refused() -> None:
    long = " ".join([TEXT] * 4)
    page, smaller = (pages.page(text, 3, SIZE, SIZE) for text in (TEXT, long))
    assert pages.SMALLEST_FONT <= smaller.font < page.font
    assert " ".join(page.lines) == TEXT and " ".join(smaller.lines) == long
    with pytest.raises(MarsError, match="text too long to be read"):
        typographic_image(" ".join([TEXT] * 100), 0)
    with pytest.raises(MarsError, match="text too long to be read"):
        typographic_image("x" * 200, 0)
    with pytest.raises(MarsError, match="no text"):
        typographic_image(" ", 0)


def test_the_same_seed_draws_the_same_and_others_vary_colours_and_places() -> None:
    pages = [pixels(typographic_image(TEXT, seed)) for seed in range(16)]
    assert np.array_equal(pages[5], pixels(typographic_image(TEXT, 5)))
    assert len({page.tobytes() for page in pages}) == 16
    assert len({tuple(page[0, 0]) for page in pages}) >= 4
    assert not np.array_equal(pages[5], pixels(typographic_image(TEXT[:-1] + "!", 5)))


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_a_video_has_frames_of_one_size_that_differ(seed: int) -> None:
    video = typographic_video(TEXT, seed)
    assert [frame.size for frame in video] == [(SIZE, SIZE)] * FRAMES
    assert len({frame.tobytes() for frame in video}) > 1


def test_every_line_of_a_video_can_be_read_in_some_frame() -> None:
    """Line by line, the ink of the still page of the same seed is found in a frame."""
    ways = set()
    for seed in range(30):
        way = int(np.random.default_rng([seed, 1]).integers(3))
        ways.add(way)
        video = typographic_video(TEXT, seed)
        if way == 0:
            page = typographic_image(TEXT, seed)
            assert np.array_equal(pixels(video[-1]), pixels(page))
            ink = [written(frame).sum() for frame in video]
            assert ink == sorted(ink) and ink[0] < ink[-1]
        elif way == 1:
            words = TEXT.split()
            ends = np.ceil(len(words) * np.linspace(0, 1, FRAMES + 1)).astype(int)
            for frame, (a, b) in zip(video, pairwise(ends), strict=True):
                assert np.array_equal(
                    pixels(frame), pixels(typographic_image(" ".join(words[a:b]), seed))
                )
        else:
            tall = written(pages.page(TEXT, seed, SIZE, SIZE * 3 // 2).draw())
            tops = np.linspace(0, SIZE // 2, FRAMES).round().astype(int)
            rows = np.flatnonzero(tall.any(1))
            lines = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
            for line in lines:
                assert any(top <= line[0] and line[-1] < top + SIZE for top in tops)
            for frame, top in zip(video, tops, strict=True):
                assert np.array_equal(written(frame), tall[top : top + SIZE])
    assert ways == {0, 1, 2}
