from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import pages
from mars_gguf.evaluate.pages import FRAMES, SIZE, typographic_image, typographic_video
from mars_gguf.evaluate.render import main
from mars_gguf.evaluate.suites import load_suite
from mars_gguf.evaluate.visual_questions import COLOURS, WORDS, questions
from mars_gguf.media.drawing import SHAPES

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
@given(seeds, st.integers(2, 8))
def test_a_video_has_frames_of_one_size_that_differ(seed: int, frames: int) -> None:
    video = typographic_video(TEXT, seed, frames)
    assert [frame.size for frame in video] == [(SIZE, SIZE)] * frames
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


def test_one_frame_is_no_video() -> None:
    with pytest.raises(MarsError, match="found 1, expected at least 2"):
        typographic_video(TEXT, 0, 1)


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
            assert question.answer == str(sum(name == shape for name, _, _ in scene.shapes))
        elif "What colour" in question.text:
            kinds.add("colour")
            assert counted(last, question.answer) > 500
            others = [c for name, c, _ in scene.shapes if f"the {name} in" not in question.text]
            assert question.answer not in others
        elif "Which shape" in question.text:
            kinds.add("shape")
            colour = question.text.split(" is ")[1].split(":")[0]
            assert question.answer in SHAPES and counted(last, colour) > 500
            assert [c for name, c, _ in scene.shapes if name == question.answer] == [colour]
        elif "Which word" in question.text:
            kinds.add("word")
            assert question.answer.upper() == scene.word and scene.word in WORDS
            assert written(last).sum() > 500
        else:
            kinds.add("side")
            (_, first, _), (_, second, _) = scene.shapes
            at = [
                np.flatnonzero((pixels(last) == COLOURS[c]).all(2).any(0)).mean()
                for c in (first, second)
            ]
            assert question.answer == ("left" if at[0] < at[1] else "right")
    assert kinds == {"count", "colour", "shape", "word", "side"}
    assert [q.text for q in questions(7, 50, frames)] == [q.text for q in found]
    assert [q.answer for q in questions(8, 50, frames)] != [q.answer for q in found]


def test_a_suite_is_written_as_pictures_and_lines_that_are_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "own.jsonl"
    typographic_image(TEXT, 0).save(tmp_path / "a.png")
    frames = typographic_video(TEXT, 0)
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:])
    lines = [
        {"id": "text ../1", "kind": "harmless", "prompt": TEXT},
        {"id": "picture", "kind": "borderline", "prompt": "Read!", "media": ["a.png"]},
        {"id": "film", "kind": "vqa", "prompt": "Which?", "media": ["v.gif"], "answer": "3",
         "modality": "video", "category": "word", "intent": TEXT},
    ]  # fmt: skip
    source.write_text("\n".join(map(json.dumps, lines)))
    main(["-o", str(tmp_path / "out"), "--suite", str(source)])
    assert "suite.jsonl" in capsys.readouterr().out
    before, after = load_suite(str(source)), load_suite(f"jsonl:{tmp_path / 'out/suite.jsonl'}")
    assert not after.problems
    for old, new in zip(before.cases, after.cases, strict=True):
        for name in ("id", "kind", "modality", "prompt", "category", "answer", "intent"):
            assert getattr(old, name) == getattr(new, name)
        for a, b in zip(old.pictures(), new.pictures(), strict=True):
            assert np.array_equal(pixels(a), pixels(b))
    assert len(list((tmp_path / "out/media").iterdir())) == 1 + FRAMES


def test_a_suite_that_is_not_there_ends_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["-o", str(tmp_path), "--suite", "nothing"])
    assert end.value.code == 2
    assert "nothing: no such suite" in capsys.readouterr().err
