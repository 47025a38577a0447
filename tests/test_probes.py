"""Neutral prompts with pictures of the user's own, from a JSON Lines file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import picture

from mars_gguf.convert.probes import FRAMES, paired_probes
from mars_gguf.errors import MarsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        picture(ord(name[0])).save(tmp_path / name)
    return tmp_path


def test_every_line_is_a_picture_with_its_prompt_and_half_of_them_are_videos_too(
    folder: Path,
) -> None:
    rows = [
        {"prompt": " What is\u2028this? ", "image": "a.png", "form": "question"},
        {"prompt": "Describe it.", "image": "b.png", "form": ""},
        {"prompt": "Describe it.", "image": "a.png"},
    ]
    lines = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "n.JSONL").write_text(lines, encoding="utf-8-sig", newline="")
    probes = paired_probes(folder / "n.JSONL")
    texts = [(p.text, p.form, p.kind) for p in probes["image"]]
    assert texts == [
        ("What is\u2028this?", "question", "own"),
        ("Describe it.", "", "own"),
        ("Describe it.", "", "own"),
    ]
    first, second, third = (p.images[0] for p in probes["image"])
    assert first is third and first != second
    assert len(probes["video"]) == 2
    assert all(
        len(p.images) == FRAMES and len(set(map(id, p.images))) == 1 for p in probes["video"]
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 2: not JSON"),
        ('{"prompt": ' + "1" * 5000 + "}", "line 2: not JSON"),
        ('["a"]', r'line 2: found list, expected {"prompt": "...", "image": "..."}'),
        ('{"prompt": "a"}', "line 2: no key 'image'; keys found: 'prompt'"),
        ('{"prompt": null, "image": "a.png"}', "line 2: 'prompt' is None, expected a non-empty"),
        ('{"prompt": "\\ud800", "image": "a.png"}', "line 2: 'prompt' holds a lone surrogate"),
        ('{"prompt": "a", "image": "\\ud800"}', "line 2: 'image' holds a lone surrogate"),
        ('{"prompt": "a", "image": "a.png", "form": 3}', "line 2: 'form' is 3"),
        ('{"prompt": "a", "image": "gone.png"}', "line 2: .*gone.png: no such file"),
        ('{"prompt": "a", "image": "n.jsonl"}', "line 2: .*n.jsonl: not a picture"),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_line_is_refused_naming_it(line: str, message: str, folder: Path) -> None:
    (folder / "n.jsonl").write_text('{"prompt": "a", "image": "a.png"}\n' + line)
    with pytest.raises(MarsError, match=message):
        paired_probes(folder / "n.jsonl")
