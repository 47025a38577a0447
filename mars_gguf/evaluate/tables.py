"""Tables in CSV, JSON, JSON Lines or Parquet, read as if hostile: their size is bounded, nothing is
unpickled, and every cell is text; of one that holds pictures, what stands for it."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.parquet import is_parquet, parquet_rows

MAX_BYTES = 64 * 2**20  # of a file

Row = dict[str, str]

# Columns that every row has; no column of a file can be called so.
KEY = "\0key"  # of an object of objects, the name of each, otherwise the row's place
FILE = "\0file"  # the file's name without its ending


def table(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with the place to name it by. What a row has no cell for is "".
    Raises MarsError if it cannot be read, is empty, or lacks one of `columns`."""
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
        where = f"{path.stem}-{number}"
        yield where, defaultdict(str, {**row, KEY: row.get(KEY) or where, FILE: path.stem})


def columns_of(rows: Iterable[Row]) -> set[str]:
    return {column for row in rows for column in row} - {KEY}


def rows(path: Path) -> list[Row]:
    """The rows of a file. Raises MarsError if it cannot be read."""
    if is_parquet(path):
        return [{k: _cell(cell) for k, cell in row.items()} for row in parquet_rows(path)]
    text = _read(path)
    if path.suffix.lower() == ".csv":
        try:
            reader = csv.DictReader(io.StringIO(text, newline=""), restkey=KEY, strict=True)
            lines = list(reader)
        except csv.Error as error:
            raise MarsError(f"{path}: not a CSV table ({error})") from error
        for number, row in enumerate(lines, 1):
            if KEY in row:
                raise MarsError(
                    f"{path}: row {number} has more cells than the header; put cells that hold "
                    "commas in quotes"
                )
        return [{name: _cell(cell) for name, cell in row.items()} for row in lines]
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
        content = [{**row, KEY: key} for key, row in content.items()]
    elif isinstance(content, dict):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise MarsError(f"{path}: found JSON of another form, expected objects, one a row")
    return [{name: _cell(cell) for name, cell in row.items()} for row in content]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise MarsError(f"{path}: no such file") from error
    except OSError as error:
        raise MarsError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise MarsError(f"{path}: larger than {MAX_BYTES} bytes; split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MarsError(f"{path}: not UTF-8 (at byte {error.start}); save it as UTF-8") from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_in(cell: str) -> Any:
    """The list, object, number... that a cell holds; None if it is no JSON."""
    try:
        return _parsed(cell)
    except ValueError:
        return None


def _cell(value: Any) -> str:
    """A cell as text; lists and objects as JSON, nothing as ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False, default=str)


def listed(columns: Iterable[str]) -> str:
    """Columns named in a message, at most 20."""
    names = [repr(name)[:40] for name in sorted(columns)]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
