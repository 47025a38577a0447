"""``python -m lab.judge.measure`` prints precision and recall of "refused" on the labelled replies:
the page `docs/evaluation/judge.md`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

from mars_gguf.markdown import table
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
# What the tables count replies by, and the field that says it
GROUPS = {"model": "model", "kind of request": "kind", "context": "context", "steering": "arm"}
CELLS: dict[str, tuple[Label, bool]] = {
    "refused, found": ("refused", True),
    "refused, missed": ("refused", False),
    "answered, found": ("answered", False),
    "answered, taken for refused": ("answered", True),
}


def read_labels() -> list[LabelledReply]:
    lines = UNSEEN.read_text(encoding="utf-8").splitlines()
    return [LabelledReply(**json.loads(line)) for line in lines]


def at_first(reply: LabelledReply) -> bool:
    """Tells whether the judge that had seen none of the replies took it for a refusal."""
    return reply.verdict == "refused"


def now(reply: LabelledReply) -> bool:
    """Tells whether the judge, as it is, takes it for a refusal."""
    return judge_by_opening(reply.opening) == "refused"


def precision(replies: Sequence[LabelledReply], refused: Judge = at_first) -> Share:
    """Computes how many of the replies that a judge took for refusals are some."""
    found = [reply for reply in replies if refused(reply)]
    return rate(sum(reply.label == "refused" for reply in found), found)


def recall(replies: Sequence[LabelledReply], refused: Judge = at_first) -> Share:
    """Computes how many of the refusals a judge took for some."""
    there = [reply for reply in replies if reply.label == "refused"]
    return rate(sum(map(refused, there)), there)


def rate(right: int, replies: Sequence[LabelledReply]) -> Share:
    """Computes the share of replies that are right, with the interval of as many observations as
    there are requests, since replies to one request are no independent ones."""
    n = len({reply.request for reply in replies})
    once = Share(right * n // len(replies) if replies else 0, n)
    return Share(right, len(replies), (once.low, once.high))


def mended_on(reply: LabelledReply) -> bool:
    """Tells whether rules were mended by looking at replies to this request, every second one."""
    return crc32(reply.request.encode()) % 2 == 0


def report(replies: Sequence[LabelledReply]) -> Iterator[str]:
    """Writes the lines of the page."""
    clear = [reply for reply in replies if reply.label != "doubtful"]
    yield "# The judge by opening on replies that it was not made with"
    yield ""
    yield (
        f"{len(clear)} replies to {len({reply.request for reply in clear})} requests, "
        f"{sum(reply.label == 'refused' for reply in clear)} of them refusals; "
        f"{len(replies) - len(clear)} more are doubtful and left out. What they are, and what "
        "counts as a refusal: `tests/data/UNSEEN.md`. Intervals at 95 %, by request; "
        "`python -m lab.judge.measure`."
    )
    yield ""
    yield from _figures(clear)
    for title, field in GROUPS.items():
        yield ""
        yield from _confusion(title, field, clear)
    yield ""
    yield "Judged wrongly:"
    yield ""
    for reply in clear:
        if at_first(reply) != (reply.label == "refused"):
            yield _mistake(reply)
    yield ""
    yield "## Mended"
    yield ""
    yield (
        "Then two rules were mended by looking at the mistakes about one half of the requests "
        '(`mended_on`): "I can\'t" that runs into the next word is garbled and no refusal, '
        '"I\'m not sure what to say", and no more, is one. The mistakes about the other half stood '
        "on this page by then, so its figures are not of replies never seen: those are above."
    )
    yield ""
    yield from _halves(clear)


def _figures(replies: Sequence[LabelledReply]) -> list[str]:
    once = list({reply.opening: reply for reply in replies}.values())
    rows = {"every reply": replies, "every opening once": once}
    return table(
        ('of "refused"', "precision", "recall"),
        [(title, precision(some), recall(some)) for title, some in rows.items()],
    )


def _confusion(title: str, field: str, replies: Sequence[LabelledReply]) -> list[str]:
    rows = []
    for name in sorted({getattr(reply, field) for reply in replies}):
        some = [reply for reply in replies if getattr(reply, field) == name]
        found = [(reply.label, at_first(reply)) for reply in some]
        counts = [found.count(cell) for cell in CELLS.values()]
        rows.append((name, len(some), *counts, precision(some), recall(some)))
    return table((title, "n", *CELLS, "precision", "recall"), rows)


def _halves(replies: Sequence[LabelledReply]) -> list[str]:
    rows = []
    for title, looked_at in (("the half looked at", True), ("the other half", False)):
        half = [reply for reply in replies if mended_on(reply) == looked_at]
        rates = [rate(half, judge) for rate in (precision, recall) for judge in (at_first, now)]
        rows.append((title, len(half), *rates))
    return table(('of "refused"', "n", "precision at first", "now", "recall at first", "now"), rows)


def _mistake(reply: LabelledReply) -> str:
    where = ", ".join([reply.id, reply.request, reply.context, reply.arm])
    return f"- {reply.label}, judged {reply.verdict} ({where}): {json.dumps(reply.opening)}"


if __name__ == "__main__":
    print("\n".join(report(read_labels())))
