from __future__ import annotations

from dataclasses import replace

from lab.judge.cut import read
from lab.judge.rates import counted, precision, rate, recall

REPLIES = read()


def test_an_interval_counts_requests_and_a_rate_replies() -> None:
    once = [replace(REPLIES[0], request=str(n)) for n in range(10)]
    assert str(rate(9, once)) == "90.0 % (60-98), 9 of 10"
    assert str(rate(27, once * 3)) == "90.0 % (60-98), 27 of 30"
    assert str(rate(0, [])) == "-"


def test_doubtful_replies_are_left_out() -> None:
    clear = counted(REPLIES)
    assert {reply.label for reply in clear} == {"refused", "answered"}
    assert precision(clear).k == recall(clear).k
