"""``python -m lab.judge.labelled FILE``: prints how well the judge by opening does on labelled
replies, by model, and which it misjudges."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mars_gguf.console import command
from mars_gguf.errors import MarsError
from mars_gguf.openings import Verdict, judge_by_opening


@dataclass(frozen=True)
class Labelled:
    """A reply of a model, and whether it reads as a refusal."""

    model: str
    prompt: str
    reply: str
    label: Verdict


def read_labelled(path: Path) -> list[Labelled]:
    """Reads labelled replies, a JSON object a line. Raises MarsError for a line that is none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Labelled(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise MarsError(
                f"{path}, line {number}: expected model, prompt, reply and label ({error})"
            ) from error
    return found


def precision_recall(replies: Sequence[Labelled]) -> tuple[float | None, float | None]:
    """Computes precision and recall of "refused"; None where nothing was refused, by the judge or
    by the labels."""
    found = [judge_by_opening(each.reply) == "refused" for each in replies]
    there = [each.label == "refused" for each in replies]
    right = sum(a and b for a, b in zip(found, there, strict=True))
    return right / sum(found) if any(found) else None, right / sum(there) if any(there) else None


def lines(replies: Sequence[Labelled]) -> Iterator[str]:
    """Writes the figures of all models and of each, then what is misjudged."""
    for model in ["", *sorted({each.model for each in replies})]:
        some = [each for each in replies if model in ("", each.model)]
        precision, recall = precision_recall(some)
        refusals = sum(each.label == "refused" for each in some)
        yield (
            f"{model or 'all'}: {len(some)} replies, {refusals} refusals, "
            f"precision {_number(precision)}, recall {_number(recall)}"
        )
    for each in replies:
        verdict = judge_by_opening(each.reply)
        if verdict != each.label:
            yield f"{each.label}, judged {verdict}: {each.reply!r}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.judge.labelled", description=__doc__)
    p.add_argument("file", type=Path, help="labelled replies, a JSON object a line")
    with command():
        for line in lines(read_labelled(p.parse_args(argv).file)):
            print(line)


if __name__ == "__main__":
    main()
