"""``python -m tests.tiny.matrix [FAMILY ...]``: every check of every family, as a Markdown table.

Each family is checked in a process of its own, so that even a crash of llama.cpp is but a cell of
the table. With ``--keep FILE`` what is done is kept, and the same command goes on. ``--write``
writes docs/FAMILIES.md. Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # as pytest does
from tiny import FAMILIES, UNSTEERABLE, Family  # noqa: E402
from tiny.checks import NotHere  # noqa: E402
from tiny.commands import CHECKS, REFUSALS  # noqa: E402
from tiny.subject import Subject  # noqa: E402

EVERY = FAMILIES | UNSTEERABLE
Result = dict[str, str]  # family, check; outcome "yes", "no" or "not here"; why


def checks_of(name: str) -> list[str]:
    return list(CHECKS if name in FAMILIES else REFUSALS)


# Running -----------------------------------------------------------------------------------------


def run_here(names: list[str], checks: list[str], place: Path, results: Path) -> None:
    """Run the checks of some families in this process, adding to ``results`` what begins and what
    comes of it."""
    for name in names:
        subject = Subject.of(EVERY[name], place)
        for check in checks:
            begun = {"family": name, "check": check}
            append(results, begun)
            append(results, begun | outcome(subject, check))


def outcome(subject: Subject, check: str) -> Result:
    try:
        why = (CHECKS | REFUSALS)[check](subject)
    except NotHere as reason:
        return {"outcome": "not here", "why": str(reason)}
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return {"outcome": "no", "why": said[:300]}
    return {"outcome": "yes", "why": why or ""}


def append(results: Path, line: dict[str, str]) -> None:
    with results.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def lines(results: Path) -> list[Result]:
    text = results.read_text("utf-8") if results.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def read(results: Path) -> dict[tuple[str, str], Result]:
    """What came of each check of each family."""
    done = [line for line in lines(results) if "outcome" in line]
    return {(line["family"], line["check"]): line for line in done}


def run_family(name: str, wanted: list[str], place: Path, results: Path) -> None:
    """Run the checks that are not done yet in a process, and in a new one what it leaves undone."""
    while missing := [check for check in wanted if (name, check) not in read(results)]:
        arguments = ["--child", str(place), "--keep", str(results), "--check", *missing]
        command = [sys.executable, "-m", "tests.tiny.matrix", name, *arguments]
        # Threads that spin, and NaN in memory that llama.cpp does not write: see tests/conftest.py.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "16384"}
        before = len(lines(results))
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )
        added = lines(results)[before:]
        if not added:
            sys.exit(f"{name}: nothing could be checked:\n{done.stderr}")
        if "outcome" not in added[-1]:
            why = f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
            append(results, added[-1] | {"outcome": "no", "why": " ".join(why.split())})


# Tables ------------------------------------------------------------------------------------------


class Notes:
    """Footnotes, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        return f"<sup>{self.numbers.setdefault(text, len(self.numbers) + 1)}</sup>" if text else ""

    def lines(self) -> list[str]:
        return [f"{number}. {text}" for text, number in self.numbers.items()]


def traits(family: Family) -> str:
    found = {
        "M-RoPE": family.mrope, "experts": family.experts, "recurrent or hybrid": family.hybrid,
        "cut into slices": family.sliced, "pictures non-causal": family.non_causal,
    }  # fmt: skip
    forms = {"strings": "strings", "parts": "typed parts", "both": "strings or parts"}
    return ", ".join([*(trait for trait, has in found.items() if has), forms[family.forms]])


def full_tables(
    names: list[str], chosen: list[str], place: Path, results: dict[tuple[str, str], Result]
) -> str:
    """A row a family, a column a check; those that cannot be steered apart."""
    notes = Notes()
    words = {"yes": "yes", "no": "**no**", "not here": "–"}
    parts = []
    for families, checks in ((FAMILIES, CHECKS), (UNSTEERABLE, REFUSALS)):
        columns = [check for check in checks if check in chosen]
        rows = [["family", "architecture", "projector", "form", *columns]]
        for name in names:
            if name not in families:
                continue
            subject = Subject.of(families[name], place)
            cells = [name, subject.architecture, subject.projector or "–", traits(subject.family)]
            for check in columns:
                found = results[name, check]
                cells.append(words[found["outcome"]] + notes.mark(found["why"]))
            rows.append(cells)
        if rows[1:] and columns:
            parts.append("\n".join(table(rows)))
    return "\n\n".join([*parts, "\n".join(notes.lines())]).strip()


def short_table(names: list[str], place: Path, results: dict[tuple[str, str], Result]) -> str:
    """A row for all families of which the same does not hold, and why."""
    alike: dict[str, list[str]] = {}
    for name in names:
        subject = Subject.of(EVERY[name], place)
        by_reason: dict[str, list[str]] = {}
        for check in checks_of(name):
            outcome, reason = results[name, check]["outcome"], results[name, check]["why"]
            if reason or outcome != "yes":
                by_reason.setdefault(reason, []).append(check)
        why = [f"{', '.join(checks)}: {reason}" for reason, checks in by_reason.items()]
        built = ", ".join(filter(None, (subject.architecture, subject.projector)))
        alike.setdefault("; ".join(why) or "every check holds", []).append(f"{name} ({built})")
    rows = [["families, with architecture and projector", "what does not hold, and why; remarks"]]
    return "\n".join(table(rows + [[", ".join(families), why] for why, families in alike.items()]))


def table(rows: list[list[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if number == 0:
            yield "| " + " | ".join("---" for _ in row) + " |"


def made() -> str:
    """When, with what and on which kind of machine."""
    return (
        f"{date.today()}, llama-cpp-python {version('llama-cpp-python')}, on the CPU "
        f"({platform.system()}, {platform.machine()})"
    )


def document(short: str) -> str:
    """docs/FAMILIES.md: the ``short`` table, and what was checked."""
    return f"""# Families

mars-gguf was checked on tiny random models of the families that llama.cpp runs, built as the real
ones are. A check shows that reading, gating and pushing work there; how well a real model is
repaired, [its card](CALIBRATION.md#reading-a-card) says. What is refused when loaded cannot be
steered.

`python -m tests.tiny.matrix FAMILY` checks one family and prints every check of it;
`python -m tests.tiny.matrix --write` made this page: {made()}.

<!-- families -->
{short}
<!-- /families -->

The checks, which `tests/tiny/checks.py` describes: {", ".join(CHECKS | REFUSALS)}. A closed gate
equals plain llama-cpp-python to the bit, an open one plain llama-cpp-python with a callback of its
own. Of models that think, the first token of the thought is judged here, or they do not think:
random ones never come to an answer. Answers after a thought have tests of their own.

[All documents](../README.md#documents)
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny.matrix", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--check", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep results, and go on")
    parser.add_argument("--write", action="store_true", help="write docs/FAMILIES.md")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names, chosen = options.names or list(EVERY), options.check or [*CHECKS, *REFUSALS]
    for given, known in ((names, EVERY), (chosen, CHECKS | REFUSALS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"found {', '.join(unknown)}, expected some of {', '.join(known)}")
    if options.child is not None:
        run_here(names, chosen, options.child, options.keep)
        return
    if options.write and (options.names or options.check):
        parser.error("--write takes all families and all checks")
    with tempfile.TemporaryDirectory() as folder:
        place, results = Path(folder), options.keep or Path(folder, "results.jsonl")
        for name in names:
            print(name, file=sys.stderr, flush=True)
            run_family(name, [c for c in checks_of(name) if c in chosen], place, results)
        found = read(results)
        print(full_tables(names, chosen, place, found))
        if options.write:
            page = document(short_table(names, place, found))
            (ROOT / "docs/FAMILIES.md").write_text(page, "utf-8")
    failed = [key for key, result in found.items() if result["outcome"] == "no"]
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
