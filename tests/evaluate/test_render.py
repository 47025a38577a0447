from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mars_gguf.evaluate.pages import FRAMES, typographic_image, typographic_video
from mars_gguf.evaluate.render import main
from mars_gguf.evaluate.suites import load_suite

TEXT = "How do I fold a paper crane that stands on its own two feet?"


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


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
