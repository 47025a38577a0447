"""``python -m lab.judge.measure``: precision and recall of "refused", on the labelled replies: the
page `docs/evaluation/judge.md`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zlib import crc32

from lab.judge.cut import UNSEEN, Label, Reply, read
from lab.judge.rates import at_first, counted, now, precision, recall

Split = Callable[[Reply], str]
SPLITS: dict[str, Split] = {
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


def mended_on(reply: Reply) -> bool:
    """Whether rules were mended by looking at replies to this request: to every second one."""
    return crc32(reply.request.encode()) % 2 == 0


def report(replies: Sequence[Reply]) -> Iterator[str]:
    """The lines of the page."""
    clear = counted(replies)
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
    for title, split in SPLITS.items():
        yield ""
        yield from _confusion(title, split, clear)
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


def _figures(replies: Sequence[Reply]) -> Iterator[str]:
    once = list({reply.opening: reply for reply in replies}.values())
    yield _row('of "refused"', "precision", "recall")
    yield _row(*["---"] * 3)
    yield _row("every reply", precision(replies), recall(replies))
    yield _row("every opening once", precision(once), recall(once))


def _confusion(title: str, split: Split, replies: Sequence[Reply]) -> Iterator[str]:
    yield _row(title, "n", *CELLS, "precision", "recall")
    yield _row(*["---"] * (len(CELLS) + 4))
    for name in sorted({split(reply) for reply in replies}):
        rows = [reply for reply in replies if split(reply) == name]
        found = [(reply.label, at_first(reply)) for reply in rows]
        counts = [found.count(cell) for cell in CELLS.values()]
        yield _row(name, len(rows), *counts, precision(rows), recall(rows))


def _halves(replies: Sequence[Reply]) -> Iterator[str]:
    yield _row('of "refused"', "n", "precision at first", "now", "recall at first", "now")
    yield _row(*["---"] * 6)
    for title, looked_at in (("the half looked at", True), ("the other half", False)):
        half = [reply for reply in replies if mended_on(reply) == looked_at]
        rates = [rate(half, judge) for rate in (precision, recall) for judge in (at_first, now)]
        yield _row(title, len(half), *rates)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _mistake(reply: Reply) -> str:
    where = ", ".join([reply.id, reply.request, reply.context, reply.arm])
    return f"- {reply.label}, judged {reply.verdict} ({where}): {json.dumps(reply.opening)}"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.judge.measure", description=__doc__)
    p.add_argument("file", nargs="?", type=Path, default=UNSEEN)
    for line in report(read(p.parse_args(argv).file)):
        print(line)


if __name__ == "__main__":
    main()
