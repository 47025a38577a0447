from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mars_gguf.evaluate.visual_questions import COLOURS, WORDS, questions


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def written(image: Image.Image) -> np.ndarray[Any, Any]:
    """Where a picture differs from its paper, the colour of its corner."""
    values = pixels(image)
    return np.abs(values - values[0, 0]).sum(2) > 60


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
