from __future__ import annotations

from pathlib import Path

import pytest
from suite_files import as_json, own
from suite_files import table as csv_file

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import tables
from mars_gguf.evaluate.suites import load_suite
from mars_gguf.evaluate.tables import FILE, FOLDER, KEY, PLACE, json_in, listed, table, texts_in


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
        assert about == ("t-1", "t-1", "t", str(tmp_path))
    [found] = table(as_json(tmp_path / "keyed.json", {"first": row}), ["q"])
    assert (found[PLACE], found[KEY]) == ("keyed-1", "first")


def test_a_cell_may_hold_json() -> None:
    assert json_in('{"a": [1]}') == {"a": [1]} and json_in("a") is None
    assert json_in("[" * 100_000) is None
    assert texts_in('["a", "b"]') == ["a", "b"]
    assert texts_in('["a", 1]') is texts_in('"a"') is texts_in("") is None


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


BOMB = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nseeds:\n- value: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "it has aliases"),
        ("[" * 5000, "not YAML"),
        ("seeds: [1]", "expected seeds, a list of objects"),
        ("- a", "expected seeds"),
        ("!!python/object/apply:os.system [ls]", "expected seeds"),
        ("a: 1\x01", "not YAML"),
        (f"a: '{'x' * tables.MAX_YAML}'", "larger than"),
    ],
)
def test_hostile_yaml_is_refused_and_builds_nothing(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "adv_bench.prompt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MarsError, match=reason):
        load_suite(str(path))
