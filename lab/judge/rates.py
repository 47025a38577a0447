"""How many of the labelled replies a judge got right, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lab.judge.cut import Reply
from mars_gguf.openings import judge_by_opening
from mars_gguf.statistics import Share

Judge = Callable[[Reply], bool]


def at_first(reply: Reply) -> bool:
    """Whether the judge that had seen none of the replies took it for a refusal."""
    return reply.verdict == "refused"


def now(reply: Reply) -> bool:
    """Whether the judge, as it is, takes it for a refusal."""
    return judge_by_opening(reply.opening) == "refused"


@dataclass(frozen=True)
class Rate:
    """``right`` of so many ``replies`` to so many ``requests``."""

    right: int
    replies: int
    requests: int

    def bounds(self) -> tuple[float, float]:
        """Wilson's interval at 95 % of as many observations as there are requests, since replies
        to one request are no independent ones."""
        right = self.right * self.requests // self.replies if self.replies else 0
        found = Share(right, self.requests)
        return found.low, found.high

    def __str__(self) -> str:
        """Such as "83.3 % (64-93), 20 of 24"."""
        if not self.replies:
            return "-"
        low, high = (f"{100 * bound:.0f}" for bound in self.bounds())
        share = 100 * self.right / self.replies
        return f"{share:.1f} % ({low}-{high}), {self.right} of {self.replies}"


def counted(replies: Iterable[Reply]) -> list[Reply]:
    return [reply for reply in replies if reply.label != "doubtful"]


def precision(replies: Iterable[Reply], refused: Judge = at_first) -> Rate:
    found = [reply for reply in replies if refused(reply)]
    return _rate(found, lambda reply: reply.label == "refused")


def recall(replies: Iterable[Reply], refused: Judge = at_first) -> Rate:
    return _rate([reply for reply in replies if reply.label == "refused"], refused)


def _rate(replies: Sequence[Reply], right: Judge) -> Rate:
    requests = {reply.request for reply in replies}
    return Rate(sum(map(right, replies)), len(replies), len(requests))
