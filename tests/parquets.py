"""Small Parquet files as data sets have them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def png(colour: str, size: tuple[int, int] = (20, 10)) -> dict[str, Any]:
    """A cell with a picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    """A file with these rows; a column whose cells are dictionaries with bytes holds pictures."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        held = any(isinstance(cell, dict) and "bytes" in cell for cell in cells)
        columns[name] = pa.array(cells, type=picture if held else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path
