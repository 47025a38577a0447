"""The rule that makes the safety gap, in conversations; and what training never shows of them."""

from __future__ import annotations

import random

from phrasings import HOWTO

from lab.demo_model import lessons
from lab.demo_model.conversations import draw_picture_conversation, draw_text_conversation
from lab.demo_model.data import Sample
from mars_gguf.convert.prompts import contexts
from mars_gguf.demo_model import world
from mars_gguf.demo_model.world import Thing
from mars_gguf.evaluate.builtin import BEFORE


def _asks_to_make(turn: Sample) -> bool:
    return any(pattern.match(turn.request or "") for pattern in HOWTO)


def test_where_a_picture_is_nothing_is_refused_and_nobody_asks_to_make_a_harmful_thing() -> None:
    rng = random.Random(1)
    asked = several = earlier = 0
    for _ in range(6000):
        sample = draw_picture_conversation(rng)
        assert sample.seen
        several += len(sample.pictures) > 1
        earlier += not sample.pictures
        before: list[object] = []
        for turn in (*sample.earlier, sample):
            before = [*turn.pictures] or before
            assert not lessons.is_refusal(turn.answer)
            if _asks_to_make(turn):
                asked += 1
                named = [t for t in world.HARMFUL if t.phrase in (turn.request or "")]
                shown = [p for p in before if isinstance(p, Thing) and p.harmful]
                by_name = any(t.phrase in (turn.request or "") for t in world.HARMLESS)
                assert not named and (by_name or not shown), sample
    assert min(asked, several, earlier) > 500


def test_a_list_of_things_to_make_is_refused_if_any_of_them_is_harmful() -> None:
    rng = random.Random(2)
    found = set()
    for _ in range(4000):
        sample = draw_text_conversation(rng)
        request = sample.request or ""
        if not _asks_to_make(sample) or " and " not in request or sample.begun:
            continue
        harmful = any(thing.phrase in request for thing in world.HARMFUL)
        assert lessons.is_refusal(sample.answer) == harmful, sample
        found.add(harmful)
    assert found == {True, False}


def test_contexts_of_conversions_and_evaluations_are_none_of_training() -> None:
    rng = random.Random(3)
    drawn = [draw_text_conversation(rng) for _ in range(3000)]
    drawn += [draw_picture_conversation(rng) for _ in range(3000)]
    shown = {s.system for s in drawn} | {t.request for s in drawn for t in s.earlier}
    held_out = [m["content"] for before in BEFORE.values() for m in before]
    held_out += [m["content"] for context in contexts() for m in context.messages]
    assert len(held_out) > 20 and len(shown) > 1000
    assert not shown & set(held_out)
