"""Cases as messages, and the pictures and videos that they show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from suite_files import film, own, picture

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.suites import load_suite
from mars_gguf.media.images import pixels_of


def test_messages_hold_pictures_first_and_nothing_of_what_is_meant() -> None:
    suite = load_suite("builtin", limit=1)
    by_modality = {case.modality: case for case in suite.cases if case.kind == "harmful"}
    [message] = by_modality["text"].messages()
    assert message == {"role": "user", "content": by_modality["text"].prompt}
    for modality, kind in (("image", "image_url"), ("video", "video")):
        [message] = by_modality[modality].messages()
        assert [part["type"] for part in message["content"]] == [kind, "text"]
        assert message["content"][-1]["text"] == by_modality[modality].prompt
        assert by_modality[modality].intent not in str(message)
    frames = [pixels_of(frame) for frame in by_modality["video"].pictures()]
    assert len(frames) == 4 and message["content"][0]["video"] == frames


GOOD = {"id": "good", "kind": "harmless", "prompt": "How do I sew?"}


def test_messages_that_stand_before_a_case_are_asked_before_it(tmp_path: Path) -> None:
    before = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    picture(tmp_path / "a.png")
    rows = [GOOD | {"before": before}, GOOD | {"id": "b", "media": ["a.png"], "before": before}]
    rows += [GOOD | {"id": "c"}, GOOD | {"id": "d", "before": []}]
    suite = load_suite(str(own(tmp_path / "own.jsonl", *rows)))
    assert not suite.problems
    alone = load_suite(str(own(tmp_path / "alone.jsonl", *[row | {"before": []} for row in rows])))
    for case, plain, n in zip(suite.cases, alone.cases, (3, 3, 0, 0), strict=True):
        assert case.messages() == [*before[:n], *plain.messages()]


def test_without_a_decoder_a_film_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "film.mp4", seconds=1)
    row = {"id": "x", "kind": "harmful", "prompt": "?", "media": ["film.mp4"], "modality": "video"}
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MarsError, match="film.mp4: nothing to read videos with; install PyAV"):
        load_suite(str(own(tmp_path / "own.jsonl", row)))
