"""Neutral prompts with pictures and films, drawn and of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from models import picture

from mars_gguf.convert.probes import FRAMES, neutral_probes, paired_probes
from mars_gguf.convert.prompts import Prompt, neutral_prompts
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
    single = [p for p in probes["image"] if len(p.images) == 1]
    texts = [(p.text, p.form, p.kind) for p in single]
    assert texts == [
        ("What is\u2028this?", "question", "own"),
        ("Describe it.", "", "own"),
        ("Describe it.", "", "own"),
    ]
    first, second, third = (p.images[0] for p in single)
    assert first is third and first != second
    assert {p.modality for p in probes["image"]} == {"image"}
    several = [p for p in probes["image"] if len(p.images) > 1]
    assert len(several) == len(probes["video"]) == 2
    assert all(p.images in [(first, second), (second, first)] for p in several)
    assert all(p.modality == "video" and len(p.images) == FRAMES for p in probes["video"])
    assert all(len(set(map(id, p.images))) == 1 for p in probes["video"])


def test_of_a_file_of_many_pictures_half_of_the_lines_come_again_with_one_to_three_others(
    tmp_path: Path,
) -> None:
    for i in range(8):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"prompt": f"What is it, {i}?", "image": f"{i % 8}.png"} for i in range(24)]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)))
    image = paired_probes(tmp_path / "n.jsonl")["image"]
    again = [(p.text, len(p.images)) for p in paired_probes(tmp_path / "n.jsonl")["image"]]
    assert again == [(p.text, len(p.images)) for p in image]
    assert Counter(len(p.images) for p in image) == {1: 24, 2: 4, 3: 4, 4: 4}
    own = {p.text: p.images[0] for p in image[:24]}
    for p in image[24:]:
        assert p.images[0] is own[p.text]
        assert len(set(map(id, p.images))) == len(p.images)


def test_several_still_pictures_of_one_line_stay_together_and_are_no_film(folder: Path) -> None:
    line = {"prompt": "Compare them.", "image": ["a.png", "b.png"], "form": "request"}
    (folder / "n.jsonl").write_text(json.dumps(line))
    probes = paired_probes(folder / "n.jsonl")
    (several,) = probes["image"]
    assert (several.modality, len(several.images)) == ("image", 2)
    assert probes["video"][0].images == (several.images[0],) * FRAMES


@pytest.mark.parametrize("own", [False, True])
def test_every_number_of_stills_meets_every_form_and_kind_and_films_are_films(
    own: bool, folder: Path
) -> None:
    probes = neutral_probes(96, 32, 0, folder if own else None)
    kinds = {"noise", "drawn"} | ({"own"} if own else set())
    forms = set(neutral_prompts())
    image = Counter((p.kind, p.form, len(p.images)) for p in probes["image"])
    assert set(image) == set(product(kinds, forms, (1, 2, 3, 4)))
    assert sum(n for (*_, stills), n in image.items() if stills == 1) == len(probes["image"]) // 2
    assert {p.modality for p in probes["image"]} == {"image"}
    assert {(p.modality, len(p.images)) for p in probes["video"]} == {("video", FRAMES)}
    assert {(p.kind, p.form) for p in probes["video"]} == set(product(kinds, forms))
    drawn = [i.tobytes() for p in probes["image"] if p.kind != "own" for i in p.images]
    assert len(set(drawn)) == len(drawn)


def test_a_prompt_is_asked_by_messages_that_tell_a_film_from_pictures() -> None:
    a, b = picture(1), picture(2)
    assert Prompt("Hello").messages == [{"role": "user", "content": "Hello"}]
    stills = Prompt("Hello", (a, b)).messages[0]["content"]
    assert [part["type"] for part in stills] == ["image_url", "image_url", "text"]
    frames, text = Prompt("Hello", (a, b), film=True).messages[0]["content"]
    urls = [part["image_url"]["url"] for part in stills[:2]]
    assert frames == {"type": "video", "video": urls}
    assert text == {"type": "text", "text": "Hello"}


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
        ('{"prompt": "a", "image": []}', r"line 2: 'image' is \[\], expected a name, or a list"),
        ('{"prompt": "a", "image": ["a.png", 3]}', "line 2: 'image' is 3, expected a non-empty"),
        ('{"prompt": "a", "image": "n.jsonl"}', "line 2: .*n.jsonl: not a picture"),
    ],
    ids=lambda value: value[:30],
)
def test_a_bad_line_is_refused_naming_it(line: str, message: str, folder: Path) -> None:
    (folder / "n.jsonl").write_text('{"prompt": "a", "image": "a.png"}\n' + line)
    with pytest.raises(MarsError, match=message):
        paired_probes(folder / "n.jsonl")
