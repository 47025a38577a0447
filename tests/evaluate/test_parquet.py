"""Tables in Parquet: pictures in cells, and files that are damaged or hostile."""

from __future__ import annotations

import os
import pickle
import random
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parquets import parquet, png
from PIL import Image
from suite_files import picture

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import parquet as reader
from mars_gguf.evaluate.suites import Suite, load_suite
from mars_gguf.evaluate.tables import rows

pa = pytest.importorskip("pyarrow")


pq = pytest.importorskip("pyarrow.parquet")


RED, BLUE = (255, 0, 0), (0, 0, 255)


ROW = {"q": "What is it?", "a": "red", "i": png("red")}


def load(path: Path, image: str = "i") -> Suite:
    return load_suite(f"table:{path}?question=q&answer=a&image={image}")


def with_picture(path: Path, cell: Any) -> Path:
    """A file of one good row and one whose cell is this."""
    return parquet(path, [ROW, {**ROW, "i": cell}])


def test_every_cell_is_text_and_pictures_wait_until_they_are_asked_for(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": [" a ", None],
            "number": [1.5, 2.0],
            "list": [["x", "y"], []],
            "struct": [{"k": 1}, None],
            "day": pa.array([0, None], type=pa.date32()),
            "raw": pa.array([png("red")["bytes"], None], type=pa.binary()),
            "several": [[png("red"), png("blue")], []],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    first, second = rows(tmp_path / "t.parquet")
    assert {name: cell for name, cell in first.items() if name not in ("raw", "several")} == {
        "text": "a", "number": "1.5", "list": '["x", "y"]', "struct": '{"k": 1}',
        "day": '"1970-01-01"',
    }  # fmt: skip
    assert second["raw"] == second["several"] == second["text"] == ""
    held = [reader.pictures_in_cell(tmp_path / "t.parquet", first[n]) for n in ("raw", "several")]
    assert [[p.getpixel((0, 0)) for p in each()] for each in held] == [[RED], [RED, BLUE]]


def test_pictures_are_found_in_any_row_group_and_scaled_down(tmp_path: Path) -> None:
    lines = [{**ROW, "i": png("red", (10 + i, 10))} for i in range(50)]
    lines[49]["i"] = png("blue", (4096, 2048))
    suite = load(parquet(tmp_path / "t.parquet", lines, row_group_size=20))
    sizes = [case.pictures()[0].size for case in suite.cases]
    assert sizes == [(10 + i, 10) for i in range(49)] + [(1024, 512)]


def test_a_cell_may_name_a_file_below_the_tables_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    picture(tmp_path / "t/p/1.png", "blue")
    suite = load(with_picture(tmp_path / "t/t.parquet", {"bytes": None, "path": "p/1.png"}))
    assert suite.cases[1].pictures()[0].getpixel((0, 0)) == BLUE
    for name in ("../secret.png", str(tmp_path / "secret.png"), "gone.png", "a\0b"):
        suite = load(with_picture(tmp_path / "t/t.parquet", {"bytes": None, "path": name}))
        assert len(suite.cases) == 1
        assert (
            "leads out" in suite.problems[0]
            or "no such file" in suite.problems[0]
            or ("not a path" in suite.problems[0])
        )


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ({"bytes": None, "path": None}, "t-2: .*row 2, 'i': no picture in it"),
        ({"bytes": b"", "path": None}, "t-2: .*row 2, 'i': no picture in it"),
        ({"bytes": b"GIF", "path": None}, "t-2: .*row 2, 'i': not a picture"),
        ({"bytes": png("red")["bytes"][:55], "path": None}, "t-2: .*truncated or damaged"),
        ({"bytes": b"\0" * 5000, "path": None}, "t-2: .*a picture of 5000 bytes, expected at most"),
    ],
)
def test_a_damaged_picture_is_a_problem_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: dict[str, Any], problem: str
) -> None:
    monkeypatch.setattr(reader, "MAX_PICTURE", 4000)
    suite = load(with_picture(tmp_path / "t.parquet", cell))
    assert [case.id for case in suite.cases] == ["t-1"]
    [found] = suite.problems
    assert re.search(problem, found), found


def test_a_row_without_a_picture_is_asked_as_text(tmp_path: Path) -> None:
    assert load(with_picture(tmp_path / "t.parquet", None)).cases[1].modality == "text"


def test_without_pyarrow_the_extra_that_brings_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "t.parquet", [ROW])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MarsError, match=r"needs pyarrow: pip install 'mars-gguf\[parquet\]'"):
        load(path)


def test_rows_columns_text_and_footer_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "t.parquet", [ROW] * 5)
    for name, bound, message in (
        ("MAX_ROWS", 4, "5 rows, expected at most 4"),
        ("MAX_COLUMNS", 2, "more than 2 columns"),
        ("MAX_TEXT", 60, "more than 60 characters of text"),
        ("MAX_FOOTER", 100, "a footer of .* bytes, expected at most 100"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(reader, name, bound)
            with pytest.raises(MarsError, match=message):
                load(path)


def test_a_small_file_of_much_text_takes_no_more_memory_than_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000), pa.array(["x" * 2**20]))
    pq.write_table(pa.table({"q": column, "a": column}), path, row_group_size=100_000)
    assert path.stat().st_size < 2**20
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    with pytest.raises(MarsError, match="characters of text; split it"):
        load(path, image="q")
    assert tracemalloc.get_traced_memory()[1] < 4 * reader.MAX_TEXT
    tracemalloc.stop()
    assert pa.default_memory_pool().max_memory() - before < 4 * reader.MAX_TEXT


def test_types_that_would_be_unpickled_are_not(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    extension = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Hostile()),
    }
    schema = pa.schema([pa.field("q", pa.string(), metadata=extension), ("a", pa.string())])
    pq.write_table(pa.table([["What?"], ["red"]], schema=schema), tmp_path / "t.parquet")
    assert load_suite(f"table:{tmp_path / 't.parquet'}?question=q&answer=a").cases
    assert not (tmp_path / "executed").exists()


def test_no_damage_to_a_file_ends_otherwise_than_in_a_suite_or_a_message(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    cell = {"bytes": (tmp_path / "noise.png").read_bytes(), "path": "noise.png"}
    whole = parquet(tmp_path / "t.parquet", [ROW, {**ROW, "i": cell}, {**ROW, "i": None}] * 3)
    content, rng = whole.read_bytes(), random.Random(0)
    path = tmp_path / "damaged.parquet"
    outcomes = set()
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
            outcomes.add(bool(load(path).cases))
        except MarsError:
            outcomes.add(False)
    assert outcomes == {True, False}
