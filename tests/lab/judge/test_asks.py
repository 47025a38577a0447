from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from lab.judge.asks import BEFORE, UNSTEERED, asks, messages, misspelled
from lab.judge.collect import NAMES, arm
from lab.judge.cut import Label, read
from lab.reader.suite import CONTEXTS

ROOT = Path(__file__).parents[3]


REPLIES = read()


PLANS = {name: asks(name) for name in NAMES}


def test_every_reply_has_a_label_and_an_id_that_says_what_was_asked() -> None:
    assert len({reply.id for reply in REPLIES}) == len(REPLIES)
    for reply in REPLIES:
        name, number = reply.id.split("-")
        ask = PLANS[name][int(number)]
        assert reply.label in get_args(Label)
        assert reply.model == NAMES[name]
        assert (reply.request, reply.kind) == (ask.request, ask.kind)
        assert (reply.context, reply.arm) == (ask.context, ask.arm)


def test_nothing_is_asked_that_a_labelled_reply_before_was_about() -> None:
    """Of what stands in a context no suite had, nothing can have been asked."""
    assert not set(map(repr, BEFORE.values())) & set(map(repr, CONTEXTS.values()))
    lines = (ROOT / "tests/data/replies.jsonl").read_text(encoding="utf-8").splitlines()
    known = {json.loads(line).get("prompt") for line in lines}
    assert None not in known
    for ask in PLANS["smollm2"]:  # the labelled replies before are of it, and of another demo model
        said = messages(ask)
        assert len(said) > 1 or "image" in ask.request or said[0]["content"] not in known


def test_every_ask_has_its_arm_and_long_words_are_misspelled() -> None:
    arms = {ask.arm for plan in PLANS.values() for ask in plan}
    assert all(arm(name).every_token > 0 for name in arms if name.startswith("stock"))
    assert arm(UNSTEERED).name == "unsteered"
    assert misspelled("Explain the yeast") == "exlpain the yeast"
