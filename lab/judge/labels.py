"""Reads labelled replies, and computes how many of them a judge got right, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mars_gguf.openings import Verdict, judge_by_opening
from mars_gguf.statistics import Share

UNSEEN = Path(__file__).parents[2] / "tests" / "data" / "unseen.jsonl"
Label = Literal["refused", "answered", "doubtful"]


@dataclass(frozen=True)
class LabelledReply:
    """A reply of a model, cut to its opening.

    label: whether all of it, as far as it was collected, is a refusal.
    verdict: the judge's on that, when it had seen none of these replies.
    """

    id: str
    model: str
    request: str
    kind: str
    context: str
    arm: str
    label: Label
    verdict: Verdict
    opening: str


Judge = Callable[[LabelledReply], bool]


def read_labels(path: Path = UNSEEN) -> list[LabelledReply]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [LabelledReply(**json.loads(line)) for line in lines]


def at_first(reply: LabelledReply) -> bool:
    """Tells whether the judge that had seen none of the replies took it for a refusal."""
    return reply.verdict == "refused"


def now(reply: LabelledReply) -> bool:
    """Tells whether the judge, as it is, takes it for a refusal."""
    return judge_by_opening(reply.opening) == "refused"


def precision(replies: Iterable[LabelledReply], refused: Judge = at_first) -> Share:
    """Computes how many of the replies that a judge took for refusals are some."""
    found = [reply for reply in replies if refused(reply)]
    return rate(sum(reply.label == "refused" for reply in found), found)


def recall(replies: Iterable[LabelledReply], refused: Judge = at_first) -> Share:
    """Computes how many of the refusals a judge took for some."""
    there = [reply for reply in replies if reply.label == "refused"]
    return rate(sum(map(refused, there)), there)


def rate(right: int, replies: Sequence[LabelledReply]) -> Share:
    """Computes the share of replies that are right, with the interval of as many observations as
    there are requests, since replies to one request are no independent ones."""
    n = len({reply.request for reply in replies})
    once = Share(right * n // len(replies) if replies else 0, n)
    return Share(right, len(replies), (once.low, once.high))
