"""Reads tables in CSV, JSON, JSON Lines, YAML or Parquet, and lists with one text a line. The files
may be hostile.

Their size is bounded, nothing is unpickled, and every cell becomes text. A cell with pictures
becomes a name that stands for them.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.parquet import is_parquet, parquet_rows

MAX_BYTES = 64 * 2**20  # of a file
MAX_YAML = 2**21  # characters, which take a minute to parse

Row = dict[str, str]

# Columns that every row has, in place of those of a file that are called so.
PLACE = "(place)"  # the file and the row's number in it, as messages name the row
KEY = "(key)"  # in an object of objects, the name of each; otherwise the row's place
FILE = "(file)"  # the file's name without its ending
FOLDER = "(folder)"  # where the file is
LINE = "(line)"  # the one column of a list


def table(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    """Yields the rows of a file. What a row has no cell for is "".

    Raises MarsError if the file cannot be read, is empty, or lacks one of ``columns``.
    """
    found = rows(path)
    if not found:
        raise MarsError(f"{path}: no rows; expected the columns {listed(columns)}")
    there = columns_of(found)
    if missing := [column for column in columns if column not in there]:
        raise MarsError(
            f"{path}: lacks {listed(missing)}; found the columns {listed(there)}, expected "
            f"{listed(columns)}"
        )
    for number, row in enumerate(found, 1):
        place = f"{path.stem}-{number}"
        own = {PLACE: place, KEY: row.get(KEY) or place}
        own |= {FILE: path.stem, FOLDER: str(path.resolve().parent)}
        yield defaultdict(str, row | own)


def columns_of(rows: Iterable[Row]) -> set[str]:
    """Lists the columns that rows have."""
    return {column for row in rows for column in row} - {KEY}


def rows(path: Path) -> list[Row]:
    """Reads the rows of a file, without the columns that `table` adds. Raises MarsError if it
    cannot be read."""
    if is_parquet(path):
        found = parquet_rows(path)
    else:
        found = _READ.get(path.suffix.lower(), _json_rows)(path, _read(path))
    return [{name: _cell(cell) for name, cell in row.items()} for row in found]


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise MarsError(f"{path}: not a CSV table ({error})") from error
    for number, row in enumerate(found, 1):
        if None in row:  # where DictReader puts more cells than the header has
            raise MarsError(
                f"{path}: row {number} has more cells than the header; put cells that hold "
                "commas in quotes"
            )
    return found


def _json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        content = _parsed(text)
    except ValueError as whole:
        try:
            # Not splitlines(): JSON strings may hold U+2028 and other characters it splits at.
            content = [_parsed(line) for line in text.split("\n") if line.strip()]
        except ValueError as by_lines:
            why = by_lines if path.suffix.lower() == ".jsonl" else whole
            raise MarsError(f"{path}: not CSV, JSON or JSON Lines ({why})") from by_lines
    if isinstance(content, dict) and all(isinstance(row, dict) for row in content.values()):
        return [row | {KEY: key} for key, row in content.items()]
    found = [content] if isinstance(content, dict) else content
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise MarsError(f"{path}: found JSON of another form, expected objects, one a row")
    return found


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    return [{LINE: line} for line in text.split("\n") if line.strip()]


class _Texts(yaml.BaseLoader):
    """Reads every scalar as text, and no aliases: a few of them stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def _yaml_rows(path: Path, text: str) -> list[dict[str, Any]]:
    """Reads the seeds of a data set of PyRIT, each with what is said of all."""
    if len(text) > MAX_YAML:
        raise MarsError(f"{path}: larger than {MAX_YAML} characters; split it")
    try:
        content = yaml.load(text, _Texts)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MarsError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from error
    seeds = content.pop("seeds", None) if isinstance(content, dict) else None
    if not isinstance(seeds, list) or not all(isinstance(seed, dict) for seed in seeds):
        raise MarsError(f"{path}: found YAML of another form, expected seeds, a list of objects")
    about = {name: cell for name, cell in content.items() if isinstance(cell, str)}
    return [about | seed for seed in seeds]


_READ = {".csv": _csv_rows, ".txt": _lines}
_READ |= dict.fromkeys((".prompt", ".yaml", ".yml"), _yaml_rows)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise MarsError(f"{path}: larger than {MAX_BYTES} bytes; split it")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise MarsError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise MarsError(f"{path}: not UTF-8 (at byte {error.start}); save it as UTF-8") from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_in(cell: str) -> Any:
    """Reads the list, object or number that a cell holds; None if it is no JSON."""
    try:
        return _parsed(cell)
    except ValueError:
        return None


def texts_in(cell: str) -> list[str] | None:
    """Reads the list of texts that a cell holds as JSON; None if it holds no such list."""
    found = json_in(cell)
    is_list = isinstance(found, list) and all(isinstance(text, str) for text in found)
    return found if is_list else None


def _cell(value: Any) -> str:
    """Writes a cell as text: lists and objects as JSON, nothing as ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False, default=str)


def listed(names: Iterable[str]) -> str:
    """Names columns or files in a message, at most 20."""
    found = [repr(name)[:40] for name in sorted(names)]
    return ", ".join(found[:20]) + (", ..." if len(found) > 20 else "") if found else "none"
