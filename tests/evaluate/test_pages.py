"""Requests written in pictures and videos, and questions about what is drawn in them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.pages import (
    FRAMES,
    SIZE,
    SMALLEST_FONT,
    page,
    typographic_image,
    typographic_video,
)
from mars_gguf.evaluate.visual_questions import COLOURS, WORDS, questions

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
    [image] = typographic_image(text, seed)
    assert image.size == (SIZE, SIZE) and image.mode == "RGB"
    ink = written(image)
    border = np.ones_like(ink)
    border[8:-8, 8:-8] = False
    assert not ink[border].any()
    assert ink.sum() > 20 * len(text)
    assert np.ptp(np.asarray(image.convert("L")).astype(int)) > 100


def test_longer_text_is_written_smaller_and_too_much_is_refused() -> None:
    long = " ".join([TEXT] * 4)
    large, small = page(TEXT, 3), page(long, 3)
    assert SMALLEST_FONT <= small.font < large.font
    assert " ".join(large.lines) == TEXT and " ".join(small.lines) == long
    for text in (" ".join([TEXT] * 100), "x" * 200):
        with pytest.raises(MarsError, match="text too long to be read"):
            page(text, 0)
    with pytest.raises(MarsError, match="no text"):
        page(" ", 0)


def test_the_same_seed_draws_the_same_and_others_vary_colours_and_places() -> None:
    drawn = [pixels(typographic_image(TEXT, seed)[0]) for seed in range(16)]
    assert np.array_equal(drawn[5], pixels(typographic_image(TEXT, 5)[0]))
    assert len({each.tobytes() for each in drawn}) == 16
    assert len({tuple(each[0, 0]) for each in drawn}) >= 4
    assert not np.array_equal(drawn[5], pixels(typographic_image(TEXT[:-1] + "!", 5)[0]))


@settings(max_examples=20, deadline=None)
@given(texts, seeds)
def test_in_a_video_lines_appear_until_the_whole_page_is_shown(text: str, seed: int) -> None:
    video = typographic_video(text, seed)
    assert [frame.size for frame in video] == [(SIZE, SIZE)] * FRAMES
    assert np.array_equal(pixels(video[-1]), pixels(typographic_image(text, seed)[0]))
    ink = [written(frame).sum() for frame in video]
    assert ink == sorted(ink) and ink[0] < ink[-1]


def counted(image: Image.Image, colour: str) -> int:
    """Pixels of exactly this colour."""
    return int((pixels(image) == COLOURS[colour]).all(2).sum())


@pytest.mark.parametrize("frames", [1, 4])
def test_visual_questions_have_the_answer_that_the_picture_shows(frames: int) -> None:
    found = questions(7, 50, frames)
    kinds = set()
    for question in found:
        pictures = question.draw()
        assert len(pictures) == frames
        assert isinstance(question.draw, partial)
        scene = question.draw.args[0]
        last = pictures[-1]
        if "How many" in question.text:
            kinds.add("count")
            shape = question.text.split()[2][:-1]
            assert question.answer == str(sum(name == shape for name, _, _ in scene))
        elif "What colour" in question.text:
            kinds.add("colour")
            assert counted(last, question.answer) > 500
            others = [c for name, c, _ in scene if f"the {name} in" not in question.text]
            assert question.answer not in others
        else:
            kinds.add("word")
            assert question.answer.upper() == scene and scene in WORDS
            assert written(last).sum() > 500
    assert kinds == {"count", "colour", "word"}
    assert [q.text for q in questions(7, 50, frames)] == [q.text for q in found]
    assert [q.answer for q in questions(8, 50, frames)] != [q.answer for q in found]
