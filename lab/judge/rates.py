"""Computes how many of the labelled replies a judge got right, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lab.judge.cut import Reply
from mars_gguf.openings import judge_by_opening
from mars_gguf.statistics import Share

Judge = Callable[[Reply], bool]


def at_first(reply: Reply) -> bool:
    """Tells whether the judge that had seen none of the replies took it for a refusal."""
    return reply.verdict == "refused"


def now(reply: Reply) -> bool:
    """Tells whether the judge, as it is, takes it for a refusal."""
    return judge_by_opening(reply.opening) == "refused"


def counted(replies: Iterable[Reply]) -> list[Reply]:
    """Leaves out the doubtful ones."""
    return [reply for reply in replies if reply.label != "doubtful"]


def precision(replies: Iterable[Reply], refused: Judge = at_first) -> Share:
    """Computes how many of the replies that a judge took for refusals are some."""
    found = [reply for reply in replies if refused(reply)]
    return rate(sum(reply.label == "refused" for reply in found), found)


def recall(replies: Iterable[Reply], refused: Judge = at_first) -> Share:
    """Computes how many of the refusals a judge took for some."""
    there = [reply for reply in replies if reply.label == "refused"]
    return rate(sum(map(refused, there)), there)


def rate(right: int, replies: Sequence[Reply]) -> Share:
    """Computes the share of replies that are right, with the interval of as many observations as
    there are requests, since replies to one request are no independent ones."""
    n = len({reply.request for reply in replies})
    once = Share(right * n // len(replies) if replies else 0, n)
    return Share(right, len(replies), (once.low, once.high))
