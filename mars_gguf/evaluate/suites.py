"""Loads suites, the sets of requests to ask a model: the package's own, and benchmarks' files.

A row that cannot be asked (empty, its picture missing or damaged) is no case: it is named in
`Suite.problems`. A file that is not what it should be is a `MarsError`. Files are read as if
hostile: sizes are bounded, nothing is unpickled, and the media that a file names must lie below the
suite's folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.benchmark import Benchmark
from mars_gguf.evaluate.benchmarks import OF_BENCHMARKS
from mars_gguf.evaluate.builtin import DATA, builtin, demo, in_conversations
from mars_gguf.evaluate.cases import (
    KINDS,
    Case,
    Found,
    Kind,
    Unusable,
    by_sort,
    evenly,
    usable_prompt,
)
from mars_gguf.evaluate.parquet import PicturesInCell
from mars_gguf.evaluate.quizzes import OF_QUIZZES, named_columns
from mars_gguf.evaluate.tables import Row, columns_of, json_in, listed, rows, texts_in
from mars_gguf.modalities import MODALITIES, TEXT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CASES = 200_000


@dataclass(frozen=True)
class Suite:
    """Cases, and what was left out and why, one line each."""

    name: str
    cases: list[Case]
    problems: list[str]


def load_suite(name_or_path: str, *, seed: int = 0, limit: int | None = None) -> Suite:
    """Loads "builtin", "conversations", "demo", a file or folder whose format is told from its
    columns or layout, "FORMAT:PATH" with one of `FORMATS`, or
    "table:FILE?question=COLUMN&answer=COLUMN" (as wanted also image, choices, id, category, group).

    ``seed`` decides how the pictures of "builtin" and "demo" are drawn. ``limit`` keeps at most so
    many cases of each kind and modality, evenly spaced. Pictures in files are decoded once here, to
    find those that cannot be, and again when asked for.

    Raises MarsError if there is no such file, it is not of the format, or no case can be used.
    """
    if limit is not None and limit < 1:
        raise MarsError(f"limit of cases: found {limit}, expected at least 1")
    if name_or_path in ("builtin", "conversations"):
        found = builtin(seed) if name_or_path == "builtin" else in_conversations()
        return _suite(name_or_path, found, limit)
    if name_or_path == "demo":
        return _suite(name_or_path, demo(seed, limit), limit)
    format_name, _, rest = name_or_path.partition(":")
    if format_name == "table":
        file, _, query = rest.rpartition("?")
        return _of_file(named_columns(query), Path(file), limit)
    stated = format_name in FORMATS and rest != ""
    path = Path(rest if stated else name_or_path)
    if not path.exists():
        raise MarsError(
            f"{name_or_path}: no such suite; expected builtin, conversations, demo, a file or "
            "folder, table:FILE?question=COLUMN&answer=COLUMN, or FORMAT:PATH with one of "
            + ", ".join(FORMATS)
        )
    return _of_file(FORMATS[format_name if stated else _detect(path)], path, limit)


def _of_file(benchmark: Benchmark, path: Path, limit: int | None) -> Suite:
    prefix = f"{benchmark.name}:"
    found = benchmark.cases(path)
    return _suite(prefix + path.name, found, limit, "" if benchmark is OWN else prefix)


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
    usable = []
    for case in _thinned(list(cases.values()), limit):
        try:
            if any(isinstance(source, Path | PicturesInCell) for source in case.media):
                case.pictures()
            usable.append(case)
        except MarsError as error:
            problems.append(f"{case.id}: {error}")
    if not usable:
        why = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        raise MarsError(f"{name}: no usable case{why}")
    return Suite(name, usable, problems)


def _thinned(cases: list[Case], limit: int | None) -> list[Case]:
    kept = {case.id for some in by_sort(cases).values() for case in evenly(some, limit)}
    return [case for case in cases if case.id in kept]


def _own_kind(row: Row) -> Kind:
    if not row["id"]:
        raise Unusable("no id")
    for kind in KINDS:
        if kind == row["kind"]:
            return kind
    raise Unusable(f"kind {row['kind']!r:.40}, expected one of {', '.join(KINDS)}")


def _own_media(row: Row) -> list[list[str]]:
    names = texts_in(row["media"] or "[]")
    if names is None:
        raise Unusable(f"media {row['media']!r:.40}, expected a list of paths")
    modality = _own_modality(row)
    if modality not in MODALITIES or (modality == TEXT.name) != (not names):
        raise Unusable(f"modality {modality!r:.40} with {len(names)} media")
    return [[name] for name in names]


def _own_modality(row: Row) -> str:
    """Tells the modality that a row states, else that of so many media: none, one, several."""
    n = len(texts_in(row["media"]) or ())
    return row["modality"] or MODALITIES[min(n, 2)]


def _before(row: Row) -> tuple[dict[str, str], ...]:
    """Reads the messages that stand before a case."""
    messages = json_in(row["before"] or "[]")
    if not isinstance(messages, list) or not all(
        isinstance(m, dict)
        and set(m) == {"role", "content"}
        and m["role"] in ("system", "user", "assistant")
        and isinstance(m["content"], str)
        for m in messages
    ):
        raise Unusable(
            f"before {row['before']!r:.40}, expected a list of messages, each with a role and a "
            "content"
        )
    return tuple({**m, "content": usable_prompt(m["content"])} for m in messages)


OWN = Benchmark(  # JSON Lines, as data/CARD.md describes them
    "jsonl",
    columns=("id", "kind", "prompt"),
    kind=_own_kind,
    answer="answer",
    before=_before,
    media=_own_media,
    modality=_own_modality,
)
_PUBLISHED = tomllib.loads((DATA / "benchmarks.toml").read_text(encoding="utf-8"))
_MADE_OF_ROWS = OF_BENCHMARKS | OF_QUIZZES
FORMATS = {
    **{name: Benchmark(name, **x, **_MADE_OF_ROWS.get(name, {})) for name, x in _PUBLISHED.items()},
    OWN.name: OWN,
}


def _detect(path: Path) -> str:
    """Tells the format of which a folder holds the files, or whose columns a file has, of several
    the one with the most columns."""
    if path.is_dir():
        lie_in = {name: each.files_in(path) for name, each in FORMATS.items()}
        names = sorted(name for name, files in lie_in.items() if files)
        if len(names) > 1:  # data sets of Parquet files have them under the same names
            names = [name for name in names if _fits(name, columns_of(rows(lie_in[name][0])))]
        if len(names) != 1:
            raise MarsError(
                f"{path}: a folder of which benchmark? found {', '.join(names) or 'none'}; name a "
                "file in it, or give FORMAT:PATH"
            )
        return names[0]
    there = columns_of(rows(path))
    names = [name for name in FORMATS if _fits(name, there)]
    if not names:
        raise MarsError(
            f"{path}: the columns of no known benchmark; found {listed(there)}; expected "
            "those of one of " + ", ".join(FORMATS) + ' (jsonl: "id", "kind", "prompt")'
        )
    return max(names, key=lambda name: len(FORMATS[name].columns))


def _fits(name: str, columns: set[str]) -> bool:
    return columns.issuperset(FORMATS[name].columns)
