"""Loads suites, the sets of requests to ask a model: the package's own, a file in our own format
(data/CARD.md), and published ones.

A row that cannot be asked (empty, its picture missing or damaged) is no case: it is named in
`Suite.problems`. A file that is not what it should be is a `MarsError`. The media that a file names
must lie below its folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.benchmarks import BENCHMARKS
from mars_gguf.evaluate.builtin import builtin, demo, in_conversations
from mars_gguf.evaluate.cases import (
    KINDS,
    Case,
    Found,
    StoredPicture,
    Unusable,
    by_sort,
    evenly,
    file_below,
    usable_prompt,
)
from mars_gguf.evaluate.tables import PLACE, Row, columns_of, json_in, listed, rows, table
from mars_gguf.modalities import MODALITIES, TEXT

MAX_CASES = 200_000
OWN, OWN_COLUMNS = "jsonl", ("id", "kind", "prompt")
COLUMNS = {OWN: OWN_COLUMNS} | {name: each.columns for name, each in BENCHMARKS.items()}


@dataclass(frozen=True)
class Suite:
    """Cases, and what was left out and why, one line each."""

    name: str
    cases: list[Case]
    problems: list[str]


def load_suite(name_or_path: str, *, limit: int | None = None) -> Suite:
    """Loads "builtin", "conversations", "demo", a file or folder whose format is told from its
    columns or layout, or "FORMAT:PATH" with "jsonl" (our own) or one of `BENCHMARKS`.

    ``limit`` keeps at most so many cases of each kind and modality, evenly spaced. Pictures in
    files are decoded once here, to find those that cannot be, and again when asked for.

    Raises MarsError if there is no such file, it is not of the format, or no case can be used.
    """
    if limit is not None and limit < 1:
        raise MarsError(f"limit of cases: found {limit}, expected at least 1")
    packaged = {"builtin": builtin(), "conversations": in_conversations(), "demo": demo(limit)}
    if name_or_path in packaged:
        return _suite(name_or_path, packaged[name_or_path], limit)
    format_name, _, rest = name_or_path.partition(":")
    stated = format_name in COLUMNS and rest != ""
    path = Path(rest if stated else name_or_path)
    if not path.exists():
        raise MarsError(
            f"{name_or_path}: no such suite; expected {', '.join(packaged)}, a file or folder, or "
            f"FORMAT:PATH with one of {', '.join(COLUMNS)}"
        )
    name = format_name if stated else _detect(path)
    found = _own(path) if name == OWN else BENCHMARKS[name].cases(path)
    return _suite(f"{name}:{path.name}", found, limit, "" if name == OWN else f"{name}:")


def _suite(name: str, found: Found, limit: int | None, prefix: str = "") -> Suite:
    cases: dict[str, Case] = {}
    problems = []
    for item in found:
        if isinstance(item, str):
            problems.append(item)
        elif item.id in cases:
            problems.append(f"{item.id}: the id occurs twice; the first is kept")
        elif len(cases) == MAX_CASES:
            raise MarsError(f"{name}: found more than {MAX_CASES} cases; split the file")
        else:
            group = f"{prefix}{item.group}" if item.group else item.id
            cases[item.id] = replace(item, group=group)
    sorts = by_sort(cases.values()).values()
    kept = {case.id for some in sorts for case in evenly(some, limit)}
    usable = []
    for case in cases.values():
        try:
            if case.id in kept:
                if any(isinstance(source, Path | StoredPicture) for source in case.media):
                    case.pictures()
                usable.append(case)
        except MarsError as error:
            problems.append(f"{case.id}: {error}")
    if not usable:
        why = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise MarsError(f"{name}: no usable case{why}")
    return Suite(name, usable, problems)


def _own(path: Path) -> Found:
    for row in table(path, OWN_COLUMNS):
        try:
            yield _own_case(path, row)
        except Unusable as problem:
            yield f"{row[PLACE]}: {problem}"


def _own_case(path: Path, row: Row) -> Case:
    if binary := [name for name, cell in row.items() if isinstance(cell, bytes)]:
        raise Unusable(f"{binary[0]}: found bytes, expected text")
    if not row["id"]:
        raise Unusable("no id")
    kind = next((kind for kind in KINDS if kind == row["kind"]), None)
    if kind is None:
        raise Unusable(f"kind {row['kind']!r:.40}, expected one of {', '.join(KINDS)}")
    if kind == "vqa" and not row["answer"]:
        raise Unusable("kind 'vqa' without an answer")
    names = json_in(row["media"] or "[]")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unusable(f"media {row['media']!r:.40}, expected a list of paths")
    modality = row["modality"] or MODALITIES[min(len(names), 2)]
    if modality not in MODALITIES or (modality == TEXT.name) != (not names):
        raise Unusable(f"modality {modality!r:.40} with {len(names)} media")
    return Case(
        row["id"],
        kind,
        modality,
        usable_prompt(row["prompt"]),
        tuple(file_below(path.resolve().parent, [name]) for name in names),
        answer=row["answer"] or None,
        before=_before(row["before"]),
        **{name: row[name] for name in ("category", "intent", "group")},
    )


def _before(cell: str) -> tuple[dict[str, str], ...]:
    """Reads the messages that stand before a case."""
    messages = json_in(cell or "[]")
    if not isinstance(messages, list) or not all(
        isinstance(m, dict)
        and set(m) == {"role", "content"}
        and m["role"] in ("system", "user", "assistant")
        and isinstance(m["content"], str)
        for m in messages
    ):
        raise Unusable(
            f"before {cell!r:.40}, expected a list of messages, each with a role and a content"
        )
    return tuple({**m, "content": usable_prompt(m["content"])} for m in messages)


def _detect(path: Path) -> str:
    """Tells the format of which a folder holds the files, or whose columns a file has, of several
    the one with the most columns."""
    if path.is_dir():
        names = [name for name, benchmark in BENCHMARKS.items() if benchmark.files_in(path)]
        if len(names) != 1:
            raise MarsError(
                f"{path}: a folder of which benchmark? found {', '.join(names) or 'none'}; name a "
                "file in it, or give FORMAT:PATH"
            )
        return names[0]
    there = columns_of(rows(path))
    names = [name for name, columns in COLUMNS.items() if there.issuperset(columns)]
    if not names:
        raise MarsError(
            f"{path}: the columns of no known benchmark; found {listed(there)}; expected "
            "those of one of " + ", ".join(COLUMNS) + ' (jsonl: "id", "kind", "prompt")'
        )
    return max(names, key=lambda name: len(COLUMNS[name]))
