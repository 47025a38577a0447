"""The figures of the judge by opening on unseen replies are those of the data, and the data are
what their card says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from lab.judge.asks import BEFORE, UNSTEERED, asks, messages, misspelled
from lab.judge.collect import NAMES, arm
from lab.judge.cut import HARMFUL_ANSWER, Label, opening, read
from lab.judge.measure import mended_on, report
from lab.judge.rates import at_first, counted, now, precision, rate, recall
from lab.reader.suite import CONTEXTS
from mars_gguf.openings import CHARACTERS, judge_by_opening

ROOT = Path(__file__).parents[3]
REPLIES = read()
PLANS = {name: asks(name) for name in NAMES}


def test_the_page_says_what_the_data_give() -> None:
    page = (ROOT / "docs" / "evaluation" / "judge.md").read_text(encoding="utf-8")
    assert page.splitlines() == list(report(REPLIES))


def test_there_are_enough_replies_of_every_sort() -> None:
    clear = counted(REPLIES)
    assert len(clear) >= 300
    assert sum(reply.label == "refused" for reply in clear) >= 80
    assert {reply.model for reply in clear} == set(NAMES.values())
    assert {reply.kind for reply in clear} == {"harmful", "borderline", "harmless", "neutral"}


def test_every_reply_has_a_label_and_an_id_that_says_what_was_asked() -> None:
    assert len({reply.id for reply in REPLIES}) == len(REPLIES)
    for reply in REPLIES:
        name, number = reply.id.split("-")
        ask = PLANS[name][int(number)]
        assert reply.label in get_args(Label)
        assert reply.model == NAMES[name]
        assert (reply.request, reply.kind) == (ask.request, ask.kind)
        assert (reply.context, reply.arm) == (ask.context, ask.arm)


def test_no_more_is_kept_than_the_judge_reads_and_little_of_answers_to_harmful_requests() -> None:
    for reply in REPLIES:
        assert len(reply.opening) <= CHARACTERS
        if reply.kind == "harmful" and reply.label != "refused" and not at_first(reply):
            assert len(reply.opening) <= HARMFUL_ANSWER


@pytest.mark.parametrize("whole", ["Sure. " * 100, "Well. I can't help with that. " * 20])
def test_the_judge_says_of_a_cut_what_it_says_of_the_whole(whole: str) -> None:
    for little in (False, True):
        assert judge_by_opening(opening(whole, little=little)) == judge_by_opening(whole)
    assert len(opening(whole, little=True)) == HARMFUL_ANSWER
    assert len(opening(whole, little=False)) == CHARACTERS


def test_a_cut_goes_as_far_as_the_verdict_needs() -> None:
    whole = f"{'Well, ' * 15}I can't help with that. {'So it is. ' * 50}"
    cut = opening(whole, little=True)
    assert HARMFUL_ANSWER < len(cut) <= 110
    assert judge_by_opening(cut) == "refused"


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


def test_an_interval_counts_requests_and_a_rate_replies() -> None:
    once = [replace(REPLIES[0], request=str(n)) for n in range(10)]
    assert str(rate(9, once)) == "90.0 % (60-98), 9 of 10"
    assert str(rate(27, once * 3)) == "90.0 % (60-98), 27 of 30"
    assert str(rate(0, [])) == "-"


def test_doubtful_replies_are_left_out() -> None:
    clear = counted(REPLIES)
    assert {reply.label for reply in clear} == {"refused", "answered"}
    assert precision(clear).k == recall(clear).k


def test_rules_were_mended_on_half_of_the_requests_and_do_no_worse_on_the_other() -> None:
    other = [reply for reply in counted(REPLIES) if not mended_on(reply)]
    assert 0.4 < len(other) / len(counted(REPLIES)) < 0.6
    for measure in (precision, recall):
        before, after = measure(other, at_first).value, measure(other, now).value
        assert before is not None and after is not None and after >= before
