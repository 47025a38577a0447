"""Reads tables in Parquet, with pictures in their cells, by pyarrow (the extra ``parquet``).

Files are read as if hostile. Of the pictures nothing is read before they are asked for, then one
cell at a time; the footer, the rows and the text are bounded. What a page's header claims, at most
2 GiB, may be taken while that page is read. Nothing in a file is executed: pickled types, which
pyarrow before 14.0.1 loaded, are not.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import Unusable, file_below
from mars_gguf.media.images import MEASURED_SIDE, decode_image, load_image

MAX_ROWS = 200_000
MAX_TEXT = 64 * 2**20  # bytes, of all cells but pictures
MAX_FOOTER = 16 * 2**20  # bytes
MAX_PICTURE = 32 * 2**20  # bytes, of one picture as it is stored
MAX_PICTURES = 32  # in one cell
MAX_COLUMNS = 1000
ROWS_AT_ONCE = 8

MAGIC = b"PAR1"
MARK = "\0"  # begins what stands for a cell with pictures; no file's name can


def is_parquet(path: Path) -> bool:
    """Tells by its first bytes whether a file is one in Parquet."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a file. A cell with pictures becomes a name that `pictures_in_cell` takes.
    Raises MarsError."""
    rows: list[dict[str, Any]] = []
    size = 0
    with _opened(path) as file:
        pictures = {field.name for field in file.schema_arrow if _holds_bytes(field.type)}
        columns = [c for name in file.schema_arrow.names for c in _leaves(file, name, pictures)]
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
            for i in range(batch.num_rows):
                row: dict[str, Any] = {}
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    row[name] = column[i].as_py()
                    if name not in pictures:
                        size += len(str(row[name]))
                    elif row[name] in (None, [], b""):
                        row[name] = None
                    else:
                        row[name] = f"{MARK}{len(rows)}{MARK}{name}"
                if size > MAX_TEXT:
                    raise MarsError(f"{path}: more than {MAX_TEXT} characters of text; split it")
                rows.append(row)
    return rows


def in_cell(name: str) -> bool:
    """Tells whether a name stands for a cell with pictures, not for a file."""
    return name.startswith(MARK)


@dataclass(frozen=True)
class PicturesInCell:
    """Reads the pictures of a cell when called: their bytes, or the file that they name below the
    table's folder. Raises MarsError."""

    path: Path
    row: int
    column: str

    def __call__(self) -> list[Image.Image]:
        cell = self._read()
        items = cell if isinstance(cell, list) else [cell]
        if len(items) > MAX_PICTURES:
            raise MarsError(f"{self}: {len(items)} pictures, expected at most {MAX_PICTURES}")
        return [self._picture(item) for item in items]

    def __str__(self) -> str:
        return f"{self.path}, row {self.row + 1}, {self.column!r:.40}"

    def _picture(self, item: Any) -> Image.Image:
        content = item.get("bytes") if isinstance(item, dict) else item
        name = item.get("path") if isinstance(item, dict) else None
        if isinstance(content, bytes) and content:
            if len(content) > MAX_PICTURE:
                raise MarsError(
                    f"{self}: a picture of {len(content)} bytes, expected at most {MAX_PICTURE}"
                )
            picture = decode_image(io.BytesIO(content), str(self))
        elif isinstance(name, str) and name:
            try:
                picture = load_image(file_below(self.path.resolve().parent, [name]))
            except Unusable as problem:
                raise MarsError(f"{self}: {problem}") from problem
        else:
            raise MarsError(f"{self}: no picture in it")
        picture.thumbnail((MEASURED_SIDE, MEASURED_SIDE))
        return picture

    def _read(self) -> Any:
        row = self.row
        with _opened(self.path) as file:
            for group in range(file.num_row_groups):
                if row < (count := file.metadata.row_group(group).num_rows):
                    break
                row -= count
            else:
                raise MarsError(f"{self}: no such row; has the file changed?")
            columns = _leaves(file, self.column, set())
            for batch in file.iter_batches(
                ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False
            ):
                if row < batch.num_rows:
                    return batch.column(self.column)[row].as_py()
                row -= batch.num_rows
        raise MarsError(f"{self}: no such row; the file is damaged")


def pictures_in_cell(path: Path, name: str) -> PicturesInCell:
    """Finds the cell that a name in a row of `parquet_rows` stands for. Raises Unusable for a name
    that stands for none."""
    row, _, column = name.removeprefix(MARK).partition(MARK)
    if not (row.isascii() and row.isdigit() and column) or int(row[:9]) != int(row):
        raise Unusable(f"{name!r:.40}: not a cell with pictures")
    return PicturesInCell(path, int(row), column)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise MarsError(
            f"{path}: a Parquet file, which needs pyarrow: pip install 'mars-gguf[parquet]'"
        ) from error
    try:
        if (size := _footer_size(path)) > MAX_FOOTER:
            raise MarsError(f"{path}: a footer of {size} bytes, expected at most {MAX_FOOTER}")
        # Buffered: without, the pictures of a whole row group would be read for one of them.
        with pq.ParquetFile(
            path,
            buffer_size=1 << 20,
            thrift_string_size_limit=MAX_FOOTER,
            thrift_container_size_limit=1 << 20,
        ) as file:
            if file.metadata.num_rows > MAX_ROWS:
                raise MarsError(
                    f"{path}: {file.metadata.num_rows} rows, expected at most {MAX_ROWS}; split it"
                )
            if file.metadata.num_columns > MAX_COLUMNS:
                raise MarsError(f"{path}: more than {MAX_COLUMNS} columns")
            yield file
    except MarsError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        why = json.dumps(str(error)[:200]).strip('"')
        raise MarsError(f"{path}: a damaged Parquet file ({why})") from error


def _footer_size(path: Path) -> int:
    with path.open("rb") as file:
        file.seek(-8, io.SEEK_END)
        end = file.read()
    if end[4:] != MAGIC:
        raise MarsError(f"{path}: a Parquet file that is cut off, or encrypted")
    return int.from_bytes(end[:4], "little")


def _holds_bytes(kind: Any) -> bool:
    """Tells whether a column's cells are pictures: bytes, structs of bytes and a path, lists."""
    import pyarrow.types as types  # type: ignore[import-untyped]

    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _leaves(file: Any, name: str, pictures: set[str]) -> list[str]:
    """Lists the stored columns of a column; of pictures that have a path, that alone: it tells
    whether they are there."""
    stored = [file.schema.column(i).path for i in range(len(file.schema))]
    own = [path for path in stored if path == name or path.startswith(f"{name}.")]
    paths = [path for path in own if path.endswith(".path")]
    return paths if name in pictures and paths else own
