"""Reads tables in CSV, JSON, JSON Lines or, by pyarrow (the extra ``parquet``), Parquet. The files
may be hostile: their size is bounded, nothing is unpickled, and every cell becomes text, or stays
bytes where it holds a picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mars_gguf.errors import MarsError

MAX_BYTES = 64 * 2**20  # of a file
MAX_PARQUET = 2**29  # bytes of all cells of one of Parquet, which may hold pictures
CELL = 512  # bytes that a cell counts for besides what is in it
ROWS_AT_ONCE = 8

Row = dict[str, Any]  # text, or the bytes of a picture

# Columns that every row has, in place of those of a file that are called so.
PLACE = "(place)"  # the file and the row's number in it, as messages name the row
KEY = "(key)"  # in an object of objects, the name of each; otherwise the row's place
FILE = "(file)"  # the file's name without its ending
FOLDER = "(folder)"  # the name of the folder where the file is


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
        own |= {FILE: path.stem, FOLDER: path.resolve().parent.name}
        yield defaultdict(str, row | own)


def columns_of(rows: Iterable[Row]) -> set[str]:
    """Lists the columns that rows have."""
    return {column for row in rows for column in row} - {KEY}


def rows(path: Path) -> list[Row]:
    """Reads the rows of a file, without the columns that `table` adds. Raises MarsError if it
    cannot be read."""
    if path.suffix.lower() == ".parquet":
        found = _parquet_rows(path)
    else:
        read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
        found = read(path, _text(path))
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


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise MarsError(
            f"{path}: a Parquet file, which needs pyarrow: pip install 'mars-gguf[parquet]'"
        ) from error
    found: list[dict[str, Any]] = []
    limits = {"thrift_string_size_limit": MAX_BYTES, "thrift_container_size_limit": 1 << 20}
    size = 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, **limits) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
                for row in batch.to_pylist():
                    found.append({name: _picture_or(cell) for name, cell in row.items()})
                    size += sum(CELL + len(_cell(cell)) for cell in found[-1].values())
                    if size > MAX_PARQUET:
                        raise MarsError(f"{path}: more than {MAX_PARQUET} bytes in it; split it")
    except MarsError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        why = json.dumps(str(error)[:200]).strip('"')
        raise MarsError(f"{path}: a damaged Parquet file ({why})") from error
    return found


def _picture_or(cell: Any) -> Any:
    """The bytes of a picture, of a cell that holds them as data sets do, or the file that it names;
    any other cell as it is."""
    if isinstance(cell, dict) and set(cell) == {"bytes", "path"}:
        return cell["bytes"] or cell["path"]
    return cell


def _text(path: Path) -> str:
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


def _cell(value: Any) -> str | bytes:
    """Writes a cell as text: lists and objects as JSON, nothing as ""; bytes stay."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False, default=str)


def listed(names: Iterable[str]) -> str:
    """Names columns or files in a message, at most 20."""
    found = [repr(name)[:40] for name in sorted(names)]
    return ", ".join(found[:20]) + (", ..." if len(found) > 20 else "") if found else "none"
