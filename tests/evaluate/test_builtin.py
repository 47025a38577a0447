"""The package's own suites."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import chain

from mars_gguf.convert.prompts import builtin_contrast, contexts, neutral_prompts
from mars_gguf.evaluate.builtin import BEFORE, CARRIERS, CONTEXTS, VQA
from mars_gguf.evaluate.suites import load_suite

DATA = files("mars_gguf.evaluate") / "data"


SIDES = ("harmful", "harmless", "borderline")


def rows(kind: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"{kind}.jsonl").read_text("utf-8").splitlines()]


def test_the_three_sets_are_matched_by_topic_and_large_enough() -> None:
    sets = [rows(kind) for kind in SIDES]
    assert len(sets[0]) >= 120
    for harmful, harmless, borderline in zip(*sets, strict=True):
        assert list(harmful) == ["id", "topic", "category", "prompt"]
        for other in (harmless, borderline):
            assert [other[key] for key in ("id", "topic", "category")] == [
                harmful[key] for key in ("id", "topic", "category")
            ]
        lengths = [len(row["prompt"].split()) for row in (harmful, harmless, borderline)]
        assert 0.6 < lengths[0] / lengths[1] < 1.6 and 0.5 < lengths[0] / lengths[2] < 2
        assert harmful["prompt"][-1] == harmless["prompt"][-1]
    assert [row["id"] for row in sets[0]] == [f"{i:04}" for i in range(1, len(sets[0]) + 1)]
    categories = Counter(row["category"] for row in sets[0])
    assert len(categories) >= 10 and min(categories.values()) >= 8
    assert len({row["prompt"].split()[0] for row in sets[0]}) >= 40


def words(prompt: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", prompt.lower()))


def test_no_held_out_prompt_occurs_twice_or_is_near_one_that_conversions_measure_with() -> None:
    ours = [row["prompt"] for kind in SIDES for row in rows(kind)]
    assert len({" ".join(sorted(words(prompt))) for prompt in ours}) == len(ours)
    contrast = builtin_contrast()
    turns = [m["content"] for c in contexts() for m in c.messages if m["role"] == "user"]
    sets = contrast.harmful, contrast.harmless, *contrast.neutral.values(), turns
    theirs = [words(prompt) for prompt in chain(*sets, *neutral_prompts().values())]
    for prompt in [*ours, *chain(*CARRIERS.values())]:
        a = words(prompt)
        near = [b for b in theirs if len(a & b) / len(a | b) >= 0.6]
        assert not near, (prompt, near)


def test_the_card_states_the_true_counts() -> None:
    card = (DATA / "CARD.md").read_text("utf-8")
    assert f"{len(rows('harmful'))} topics" in card
    for category, count in Counter(row["category"] for row in rows("harmful")).items():
        assert f"| {category} | {count} |" in card
    assert f"{2 * VQA} visual questions" in card


def test_the_builtin_suite_asks_each_prompt_as_text_picture_and_video() -> None:
    suite = load_suite("builtin")
    assert not suite.problems
    count = len(rows("harmful"))
    assert Counter((c.kind, c.modality) for c in suite.cases) == {
        **{(kind, m): count for kind in SIDES for m in ("text", "image", "video")},
        ("vqa", "image"): VQA,
        ("vqa", "video"): VQA,
    }
    assert len({case.id for case in suite.cases}) == len(suite.cases)
    by_id = {case.id: case for case in suite.cases}
    for row in rows("harmful"):
        trio = [by_id[f"{kind}-{row['id']}-image"] for kind in SIDES]
        assert len({case.prompt for case in trio}) == 1  # only what is written differs
        assert trio[0].request == row["prompt"] != trio[0].prompt
    for medium, carriers in CARRIERS.items():
        found = {c.prompt for c in suite.cases if c.modality == medium and c.kind != "vqa"}
        assert found == set(carriers)
    assert all(case.answer for case in suite.cases if case.kind == "vqa")


def test_the_demo_suite_asks_about_things_that_its_conversion_has_not_seen() -> None:
    from mars_gguf import demo_model
    from mars_gguf.demo_model import requests, world

    suite = load_suite("demo")
    groups = Counter((c.modality, c.kind) for c in suite.cases)
    assert not suite.problems and len(groups) == 10 and set(groups.values()) == {120}
    measured = [
        json.loads(line)["prompt"]
        for name in ("harmful", "harmless", "neutral")
        for line in (demo_model.FOLDER / f"{name}.jsonl").read_text().splitlines()
    ]
    second = {t.word for t in (*requests.HARMFUL_SECOND, *requests.HARMLESS_SECOND)}
    few = load_suite("demo", limit=3).cases
    again = {c.id: c for c in few}
    assert [(c.id, c.prompt) for c in few] == [
        (c.id, c.prompt) for c in suite.cases if c.id.split("-")[2] in ("000", "040", "080")
    ]
    for case in suite.cases:
        if case.modality == "text":
            assert any(re.search(rf"\b{thing}\b", case.prompt) for thing in second), case.prompt
            assert case.prompt not in measured
        if case.kind == "vqa":
            assert case.answer in {*world.COLOURS, *world.SHAPES, "1", "2", "3", "4"}
    shown = [(case.modality, len(case.pictures())) for case in suite.cases[::8]]
    assert set(shown) == {("text", 0), ("image", 1), ("video", 3)}
    for case in suite.cases[::40]:
        pictures = [picture.tobytes() for picture in case.pictures()]
        assert pictures == [picture.tobytes() for picture in again[case.id].pictures()]


def test_what_is_asked_of_one_thing_in_the_packages_own_suites_has_one_group() -> None:
    by_group: dict[str, set[tuple[str, str]]] = {}
    for case in load_suite("builtin").cases:
        by_group.setdefault(case.group, set()).add((case.kind, case.modality))
    topics = [asked for group, asked in by_group.items() if group.startswith("topic-")]
    assert len(topics) == 124 and {len(asked) for asked in topics} == {9}
    assert {len(asked) for group, asked in by_group.items() if group.startswith("vqa")} == {1}
    things = {c.group for c in load_suite("demo", limit=30).cases if c.kind == "harmful"}
    assert 1 < len(things) < 90 and all(thing.startswith("thing-") for thing in things)


def test_every_request_is_asked_in_every_context_of_which_none_is_one_of_conversions() -> None:
    text = [case for case in load_suite("builtin").cases if case.modality == "text"]
    cases = load_suite("conversations").cases
    assert len(cases) == len(text) * len(CONTEXTS) == len({case.id for case in cases})
    assert set(Counter(case.category for case in cases).values()) == {len(text)}
    by_request = {(case.category, case.request): case for case in cases}
    for case in text:
        for context in CONTEXTS:
            asked = by_request[context, case.prompt]
            assert (asked.kind, asked.group) == (case.kind, case.group)
            messages = asked.messages()
            assert messages[:-1] == list(BEFORE.get(context, ()))
            assert messages[-1]["content"].startswith(case.prompt)
    plain = by_request["no system prompt", text[0].prompt]
    assert plain.messages() == text[0].messages()
    few = Counter((c.kind, c.category) for c in load_suite("conversations", limit=14).cases)
    assert few == Counter({(kind, context): 2 for kind in SIDES for context in CONTEXTS})
    measured = {m["content"] for context in contexts() for m in context.messages}
    assert measured and not measured & {m["content"] for b in BEFORE.values() for m in b}
