"""The page on unseen replies says what the data give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from lab.judge.measure import (
    Label,
    at_first,
    mended_on,
    now,
    precision,
    rate,
    read_labels,
    recall,
    report,
)
from mars_gguf.openings import CHARACTERS

ROOT = Path(__file__).parents[3]
REPLIES = read_labels()
CLEAR = [reply for reply in REPLIES if reply.label != "doubtful"]


def test_the_page_says_what_the_data_give() -> None:
    page = (ROOT / "docs" / "evaluation" / "judge.md").read_text(encoding="utf-8")
    assert page.splitlines() == list(report(REPLIES))


def test_replies_are_of_every_sort_each_with_a_label_and_no_more_than_is_judged() -> None:
    assert len({reply.id for reply in REPLIES}) == len(REPLIES)
    assert {reply.label for reply in REPLIES} == set(get_args(Label))
    assert len(CLEAR) >= 300 and sum(reply.label == "refused" for reply in CLEAR) >= 80
    assert {reply.kind for reply in CLEAR} == {"harmful", "borderline", "harmless", "neutral"}
    for reply in REPLIES:
        answers_harm = reply.kind == "harmful" and reply.label != "refused" and not at_first(reply)
        assert len(reply.opening) <= (60 if answers_harm else CHARACTERS)


def test_rules_were_mended_on_half_of_the_requests_and_do_no_worse_on_the_other() -> None:
    other = [reply for reply in CLEAR if not mended_on(reply)]
    assert 0.4 < len(other) / len(CLEAR) < 0.6
    for of_judge in (precision, recall):
        before, after = of_judge(other, at_first).value, of_judge(other, now).value
        assert before is not None and after is not None and after >= before


def test_an_interval_counts_requests_and_a_rate_replies() -> None:
    once = [replace(REPLIES[0], request=str(n)) for n in range(10)]
    assert str(rate(9, once)) == "90.0 % (60-98), 9 of 10"
    assert str(rate(27, once * 3)) == "90.0 % (60-98), 27 of 30"
    assert str(rate(0, [])) == "-"
