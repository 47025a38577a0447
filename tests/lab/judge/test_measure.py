"""The page on unseen replies says what the data give."""

from __future__ import annotations

from pathlib import Path

from lab.judge.collect import NAMES
from lab.judge.cut import read
from lab.judge.measure import mended_on, report
from lab.judge.rates import at_first, counted, now, precision, recall

ROOT = Path(__file__).parents[3]


REPLIES = read()


def test_the_page_says_what_the_data_give() -> None:
    page = (ROOT / "docs" / "evaluation" / "judge.md").read_text(encoding="utf-8")
    assert page.splitlines() == list(report(REPLIES))


def test_there_are_enough_replies_of_every_sort() -> None:
    clear = counted(REPLIES)
    assert len(clear) >= 300
    assert sum(reply.label == "refused" for reply in clear) >= 80
    assert {reply.model for reply in clear} == set(NAMES.values())
    assert {reply.kind for reply in clear} == {"harmful", "borderline", "harmless", "neutral"}


def test_rules_were_mended_on_half_of_the_requests_and_do_no_worse_on_the_other() -> None:
    other = [reply for reply in counted(REPLIES) if not mended_on(reply)]
    assert 0.4 < len(other) / len(counted(REPLIES)) < 0.6
    for measure in (precision, recall):
        before, after = measure(other, at_first).value, measure(other, now).value
        assert before is not None and after is not None and after >= before
