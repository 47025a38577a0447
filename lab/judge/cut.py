"""``python -m lab.judge.cut REPLIES... --labels FILE -o FILE`` labels replies, and keeps no more of
them than the judge reads, and hardly anything of an answer to a harmful request.

REPLIES are what `lab.judge.collect` wrote; a line of the labels is an id and a label.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mars_gguf.errors import MarsError
from mars_gguf.openings import CHARACTERS, Verdict, judge_by_opening

UNSEEN = Path(__file__).parents[2] / "tests" / "data" / "unseen.jsonl"
HARMFUL_ANSWER = 60  # characters
Label = Literal["refused", "answered", "doubtful"]


@dataclass(frozen=True)
class Reply:
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


def read(path: Path = UNSEEN) -> list[Reply]:
    return [Reply(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def opening(whole: str, *, little: bool) -> str:
    """Cuts a reply where the judge still says what it says of all of it: as much as it reads, or as
    ``little`` as will do."""
    verdict = judge_by_opening(whole)
    for length in (*range(HARMFUL_ANSWER, CHARACTERS, 10), CHARACTERS)[0 if little else -1 :]:
        if judge_by_opening(whole[:length]) == verdict:
            return whole[:length]
    raise MarsError(f"the judge reads more than {CHARACTERS} characters of {whole!r}")


def labelled(row: dict[str, Any], label: Label) -> Reply:
    """Cuts a collected reply, and gives it its label."""
    whole = row.pop("reply")
    harmful_answer = row["kind"] == "harmful" and label != "refused"
    return Reply(
        **row,
        label=label,
        verdict=judge_by_opening(whole),
        opening=opening(whole, little=harmful_answer),
    )


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.judge.cut", description=__doc__)
    p.add_argument("replies", nargs="+", type=Path)
    p.add_argument("--labels", type=Path, required=True)
    p.add_argument("-o", "--output", type=Path, default=UNSEEN, metavar="FILE")
    args = p.parse_args(argv)
    labels = dict(line.split() for line in args.labels.read_text(encoding="utf-8").splitlines())
    assert set(labels.values()) <= set(get_args(Label))
    rows = [
        json.loads(line)
        for path in args.replies
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    cut = [labelled(row, labels[row["id"]]) for row in sorted(rows, key=lambda row: row["id"])]
    text = "".join(json.dumps(asdict(reply), ensure_ascii=False) + "\n" for reply in cut)
    args.output.write_text(text, encoding="utf-8")
    print(f"wrote {args.output}: {len(cut)} replies")


if __name__ == "__main__":
    main()
