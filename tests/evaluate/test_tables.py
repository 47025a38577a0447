"""Tables of every format, damaged and hostile ones among them."""

from __future__ import annotations

import os
import pickle
import random
import sys
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parquets import parquet, png
from suite_files import as_json, own
from suite_files import table as csv_file

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import tables
from mars_gguf.evaluate.suites import load_suite
from mars_gguf.evaluate.tables import FILE, FOLDER, KEY, PLACE, json_in, listed, rows, table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_rows_of_every_format_are_texts_with_the_place_that_they_have(tmp_path: Path) -> None:
    row = {"q": " a ", "n": 1, "many": ["x", {"y": None}]}
    for path in (
        csv_file(tmp_path / "t.csv", "q,n,many", [" a ", 1, '["x", {"y": null}]']),
        as_json(tmp_path / "t.json", [row]),
        own(tmp_path / "t.jsonl", row),
    ):
        [found] = table(path, ["q"])
        assert {name: found[name] for name in row} == {
            "q": "a", "n": "1", "many": '["x", {"y": null}]',
        }  # fmt: skip
        assert found["of no column"] == ""
        about = found[PLACE], found[KEY], found[FILE], found[FOLDER]
        assert about == ("t-1", "t-1", "t", tmp_path.name)
    [found] = table(as_json(tmp_path / "keyed.json", {"first": row}), ["q"])
    assert (found[PLACE], found[KEY]) == ("keyed-1", "first")


def test_a_cell_may_hold_json() -> None:
    assert json_in('{"a": [1]}') == {"a": [1]} and json_in("a") is None
    assert json_in("[" * 100_000) is None


def test_messages_name_twenty_columns_at_most() -> None:
    assert listed([]) == "none"
    assert listed("ba") == "'a', 'b'"
    assert listed(f"{n:02}" for n in range(30)).endswith("'19', ...")


def test_a_file_beyond_the_bound_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.truncate(tables.MAX_BYTES + 1)
    with pytest.raises(MarsError, match="larger than"):
        load_suite(str(path))


PICTURE = png("red")


def test_parquet_has_texts_and_the_bytes_of_pictures(tmp_path: Path) -> None:
    row = {
        "text": " a ", "number": 1.5, "list": ["x", "y"], "struct": {"k": 1},
        "day": date(1970, 1, 2),
        "raw": b"GIF", "image": PICTURE, "named": {"bytes": None, "path": "p/1.png"},
        "none": None,
    }  # fmt: skip
    [found] = rows(parquet(tmp_path / "t.parquet", [row]))
    assert found == {
        "text": "a", "number": "1.5", "list": '["x", "y"]', "struct": '{"k": 1}',
        "day": '"1970-01-02"', "raw": b"GIF", "image": PICTURE["bytes"], "named": "p/1.png",
        "none": "",
    }  # fmt: skip


def test_without_pyarrow_the_extra_that_brings_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "t.parquet", [{"q": "?"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MarsError, match=r"needs pyarrow: pip install 'mars-gguf\[parquet\]'"):
        rows(path)


def test_a_small_file_of_much_text_takes_no_more_memory_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_PARQUET", 2**26)
    path = tmp_path / "bomb.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"q": column, "a": column}), path, row_group_size=100_000)
    assert path.stat().st_size < 2**20
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    with pytest.raises(MarsError, match="bytes in it; split it"):
        rows(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * tables.MAX_PARQUET
    tracemalloc.stop()
    assert pa.default_memory_pool().max_memory() - before < 4 * tables.MAX_PARQUET


def test_types_that_would_be_unpickled_are_not(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Hostile()),
    }
    schema = pa.schema([pa.field("q", pa.string(), metadata=extension)])
    pq.write_table(pa.table([["What?"]], schema=schema), tmp_path / "t.parquet")
    assert rows(tmp_path / "t.parquet") == [{"q": "What?"}]
    assert not (tmp_path / "executed").exists()


def test_no_damage_to_a_file_ends_otherwise_than_in_rows_or_a_message(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 600, dtype=np.uint8).tobytes()
    row = {"id": "1", "question": "?", "image": {"bytes": noise, "path": "noise.png"}}
    whole = parquet(tmp_path / "t.parquet", [row, row | {"image": None}] * 3)
    content, rng = whole.read_bytes(), random.Random(0)
    path, outcomes = tmp_path / "damaged.parquet", set()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 2, 8))):
            # most of what can go wrong is in the footer
            start = rng.choice((4, len(damaged) * 3 // 4))
            damaged[rng.randrange(start, len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) : -8]
        path.write_bytes(damaged)
        try:
            outcomes.add(len(rows(path)) > 0)
        except MarsError:
            outcomes.add(False)
    assert outcomes == {True, False}
