"""Neutral prompts with pictures and films, drawn and of the user's own."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest
from models import picture

from mars_gguf.convert.probes import FORMS as MEETS
from mars_gguf.convert.probes import FRAMES, STILLS, neutral_probes, paired_probes
from mars_gguf.convert.prompts import Preamble, Prompt, contexts, neutral_prompts
from mars_gguf.convert.splits import Split
from mars_gguf.errors import MarsError

KINDS = ("noise", "drawn")
FORMS = set(neutral_prompts())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        picture(ord(name)).save(tmp_path / f"{name}.png")
    return tmp_path


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "n.JSONL").write_text(
        "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
        encoding="utf-8-sig", newline="",
    )  # fmt: skip
    return folder / "n.JSONL"


def pictures(prompts: list[Prompt]) -> set[bytes]:
    return {image.tobytes() for prompt in prompts for image in prompt.images}


def shown(prompt: Prompt) -> tuple[int, ...]:
    return tuple(map(id, prompt.images))


def assert_disjoint(parts: Split, *, texts: bool) -> None:
    for one, other in combinations(parts, 2):
        assert not pictures(one) & pictures(other)
        if texts:
            assert not {p.text for p in one} & {p.text for p in other}


# A crossed design --------------------------------------------------------------------------------


def assert_crossed(prompts: list[Prompt], kinds: set[str], forms: set[str]) -> None:
    """Whatever is shown meets so many forms of prompt, and every form every kind."""
    for start in range(0, len(prompts), MEETS):
        some = prompts[start : start + MEETS]
        assert len({p.form for p in some}) == MEETS
        assert len({(p.kind, shown(p)) for p in some}) == 1
    assert {(p.kind, p.form) for p in prompts} == set(product(kinds, forms))


@pytest.mark.parametrize("own", [False, True])
def test_every_form_meets_every_kind_and_every_part_has_pictures_and_texts_of_its_own(
    own: bool, folder: Path
) -> None:
    (folder / "cards").mkdir()
    for i in range(18):
        picture(1000 + i).save(folder / "cards" / f"{i}.png")
        picture(2000 + i).save(folder / f"{i}.png")
    borderline = [f"How do I kill process {i}?" for i in range(9)]
    found = neutral_probes(96, 32, 0, contexts(), borderline, folder if own else None)
    kinds = {"own", "cards"} if own else set(KINDS)
    for parts, film in ((found["image"], False), (found["video"], True)):
        assert_disjoint(parts, texts=True)
        for part in parts:
            assert_crossed(part, kinds, {*FORMS, "borderline"})
            assert {p.modality for p in part} == {"video" if film else "image"}
            assert {p.text for p in part if p.form == "borderline"} < set(borderline)
            assert not film or {len(p.images) for p in part} == {FRAMES}
    images, films = ([len(set(map(shown, part))) for part in found[m]] for m in ("image", "video"))
    if not own:  # few pictures come again in the same groups
        assert sum(images) == pytest.approx(96, abs=8)
        assert sum(films) <= sum(images) / 2
    assert images[2] > max(images[:2])  # most where a small share is promised


def test_pictures_take_turns_at_how_many_stand_together_and_at_what_stands_before_them() -> None:
    for part in neutral_probes(120, 32, 1, contexts())["image"]:
        first = {shown(p): p for p in part}
        for kind in KINDS:
            stills = [len(p.images) for p in first.values() if p.kind == kind]
            assert stills == [STILLS[i % len(STILLS)] for i in range(len(stills))]
        assert all(p.context is first[shown(p)].context for p in part)
        names = [p.context.name for p in first.values()]
        assert names.count("none") == pytest.approx(len(names) / 2, abs=1)
        together = {(len(p.images) > 1, p.context.name != "none") for p in part}
        assert together == set(product((False, True), repeat=2))
        turns = Counter(id(p.context) for p in first.values() if p.context.messages)
        assert max(turns.values()) - min(turns.values()) <= 1


@pytest.mark.parametrize("before", [contexts()[:1], contexts("Be brief.")[:1]])
def test_without_contexts_nothing_stands_before_a_picture_or_the_one_system_prompt(
    before: list[Preamble], folder: Path
) -> None:
    rows = [{"prompt": "What is it?", "image": f"{name}.png"} for name in "abcdef"]
    pairs = paired_probes(written(folder, rows), before)
    for probes in (neutral_probes(24, 32, 0, before), pairs):
        assert all(p.context == before[0] for p in chain(*probes["image"], *probes["video"]))


def test_pictures_of_pairs_are_asked_in_the_packages_forms_too_and_drawn_ones_in_theirs(
    tmp_path: Path,
) -> None:
    for i in range(20):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"prompt": f"What is it, {i}?", "image": f"{i}.png"} for i in range(20)]
    file = written(tmp_path, rows)
    pairs, found = paired_probes(file), neutral_probes(24, 32, 0, media=file)
    assert neutral_probes(24, 32, 0, media=file, alone=True).keys() == pairs.keys()
    for m, parts in found.items():
        assert_disjoint(parts, texts=True)
        for part, paired in zip(parts, pairs[m], strict=True):
            assert [p.text for p in part[: len(paired)]] == [p.text for p in paired]
            theirs, texts = pictures(paired), {p.text for p in paired}
            crossed = part[len(paired) :]
            assert {(p.text in texts, pictures([p]) <= theirs) for p in crossed} == {
                (True, False), (False, True)
            }  # fmt: skip
            assert all(p.own == (p.text in texts) for p in part)


# Pairs from a file -------------------------------------------------------------------------------


def test_every_line_is_a_picture_with_its_prompt_and_half_of_them_are_videos_too(
    folder: Path,
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": " What is\u2028this? ", "image": "a.png", "form": "question"},
        *({"prompt": "Describe it.", "image": f"{name}.png", "form": ""} for name in "bcdef"),
        {"prompt": "Describe it.", "image": "a.png"},
    ]
    probes = paired_probes(written(folder, rows))
    image, video = (list(chain(*probes[m])) for m in ("image", "video"))
    single = [p for p in image if len(p.images) == 1]
    assert sorted((p.text, p.form, p.kind) for p in single) == [
        *[("Describe it.", "", "own")] * 6, ("What is\u2028this?", "question", "own")
    ]  # fmt: skip
    assert len(pictures(single)) == 6
    assert {p.modality for p in image} == {"image"}
    assert {(p.modality, len(p.images)) for p in video} == {("video", FRAMES)}
    assert all(len(set(map(id, p.images))) == 1 for p in video)


def test_lines_of_one_picture_stay_in_one_part_and_half_come_again_with_others_of_it(
    tmp_path: Path,
) -> None:
    for i in range(20):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"prompt": f"What is it, {i}?", "image": f"{i % 20}.png"} for i in range(60)]
    before = [Preamble(), Preamble("one"), Preamble("two")]
    probes, again = (paired_probes(written(tmp_path, rows), before) for _ in range(2))
    for m, parts in probes.items():
        assert_disjoint(parts, texts=True)
        for part, same in zip(parts, again[m], strict=True):
            assert [(p.text, p.context, len(p.images)) for p in part] == [
                (p.text, p.context, len(p.images)) for p in same
            ]
            names = [p.context.name for p in part]
            assert names == [("none", "one", "none", "two")[i % 4] for i in range(len(part))]
    for part, films in zip(probes["image"], probes["video"], strict=True):
        single = {p.text: p.images[0] for p in part if len(p.images) == 1}
        several = [p for p in part if len(p.images) > 1]
        assert len(several) == len(films) == (len(single) + 1) // 2
        assert {len(p.images) for p in several} == {2, 3, 4}
        for p in several:
            assert p.images[0] is single[p.text]
            assert len(set(map(id, p.images))) == len(p.images)
    assert sum(len({p.text for p in part}) for part in probes["image"]) == 60
    assert [len({p.text for p in part}) for part in probes["image"]] == [18, 12, 30]


def test_several_still_pictures_of_one_line_stay_together_and_are_no_film(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Compare them.", "image": ["a.png", "b.png"]},
        {"prompt": "Compare them.", "image": ["c.png", "d.png"]},
        {"prompt": "Compare them.", "image": ["e.png", "f.png"]},
    ]
    probes = paired_probes(written(folder, rows))
    for (several,), (film,) in zip(probes["image"], probes["video"], strict=True):
        assert (several.modality, len(several.images)) == ("image", 2)
        assert film.images == (several.images[0],) * FRAMES


# Messages ----------------------------------------------------------------------------------------


def test_a_prompt_is_asked_by_messages_that_tell_a_film_from_pictures() -> None:
    a, b = picture(1), picture(2)
    hello = {"role": "user", "content": "Hello"}
    assert Prompt("Hello").messages == [hello]
    before = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    assert Prompt("Hello", context=Preamble("", before)).messages == [*before, hello]
    stills = Prompt("Hello", (a, b)).messages[0]["content"]
    assert [part["type"] for part in stills] == ["image_url", "image_url", "text"]
    frames, text = Prompt("Hello", (a, b), medium="video").messages[0]["content"]
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
