"""Markdown tables: what is in a cell stays in it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mars_gguf.markdown import as_text, table

READER = MarkdownIt("commonmark").enable("table")


def cells_of(text: str) -> list[list[str]]:
    """The cells that a reader of Markdown finds, row by row, as plain text."""
    rows: list[list[str]] = []
    for token in READER.parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append("".join(part.content for part in token.children or []))
    return rows


def test_a_table_has_a_header_a_rule_and_its_rows() -> None:
    found = table(["set", "", "t"], [["harmful", "", 0.5], ["harmless", 1, ""]], ["right"])
    assert found == [
        "| set | | t |",
        "| ---: | --- | --- |",
        "| harmful | | 0.5 |",
        "| harmless | 1 | |",
    ]


@given(st.lists(st.text("ab|\\`\n\r\t\x1b\x07\u2028\x85 ", max_size=8), min_size=2, max_size=3))
def test_no_text_leaves_its_cell(texts: list[str]) -> None:
    lines = table(["name"] * len(texts), [texts])
    assert len("\n".join(lines).splitlines()) == 3
    assert [len(row) for row in cells_of("\n".join(lines))] == [len(texts)] * 2


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found a row of 1 cells, expected 2"):
        table(["a", "b"], [["only one"]])


def read(text: str) -> str:
    """What a reader sees of a page that is one line of plain text."""
    opened, inline, closed = READER.parse(text)
    assert (opened.type, closed.type) == ("paragraph_open", "paragraph_close")
    assert {part.type for part in inline.children or []} <= {"text", "text_special"}, text
    return "".join(part.content for part in inline.children or [])


marks = st.text("ab1 .)(!_*`~#<>&;/=-+[]:\"'\\|\n\t", min_size=1, max_size=12)


@given(marks.filter(lambda text: text.strip()))
@example("# a heading")
@example("1. one")
@example("![](https://example.org/a.png)")
@example("<script>alert(1)</script>")
@example("&lt;b&gt;")
@example("**bold** and _so_ on, a_name_of_a_file and __init__")
def test_text_is_read_as_it_was_given(text: str) -> None:
    assert read(as_text(text)) == " ".join(text.split())
    assert READER.parse(f"- {as_text(text)}")[3].type == "inline"


@given(marks.filter(lambda text: text.strip()))
def test_text_in_a_cell_is_read_as_it_was_given(text: str) -> None:
    page = "\n".join(table(["a", "b"], [["", as_text(text)]]))
    assert cells_of(page)[1] == ["", " ".join(text.split())]


def test_control_characters_are_named() -> None:
    assert read(as_text("a\x1b[31mb\u202ec")) == r"a\x1b[31mb\u202ec"
