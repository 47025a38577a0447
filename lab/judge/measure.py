"""``python -m lab.judge.measure`` prints precision and recall of "refused" on the labelled replies:
the page `docs/evaluation/judge.md`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

from lab.judge.labels import (
    UNSEEN,
    Label,
    LabelledReply,
    at_first,
    now,
    precision,
    read_labels,
    recall,
)
from mars_gguf.markdown import table

Group = Callable[[LabelledReply], str]
GROUPS: dict[str, Group] = {
    "model": lambda reply: reply.model,
    "kind of request": lambda reply: reply.kind,
    "context": lambda reply: reply.context,
    "steering": lambda reply: reply.arm,
}
CELLS: dict[str, tuple[Label, bool]] = {
    "refused, found": ("refused", True),
    "refused, missed": ("refused", False),
    "answered, found": ("answered", False),
    "answered, taken for refused": ("answered", True),
}


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
    for title, group in GROUPS.items():
        yield ""
        yield from _confusion(title, group, clear)
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


def _confusion(title: str, group: Group, replies: Sequence[LabelledReply]) -> list[str]:
    rows = []
    for name in sorted({group(reply) for reply in replies}):
        some = [reply for reply in replies if group(reply) == name]
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


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.judge.measure", description=__doc__)
    p.add_argument("file", nargs="?", type=Path, default=UNSEEN)
    for line in report(read_labels(p.parse_args(argv).file)):
        print(line)


if __name__ == "__main__":
    main()
