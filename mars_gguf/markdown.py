"""Markdown tables, as cards, reports and the commands of lab/ write them, and text in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mars_gguf.console import printable

# An underscore within a word, as names of files have it, is one anyway.
_SPECIAL = re.compile(r"[\\`*\[\]<>&~$#]|(?<![^\W_])_|_(?![^\W_])|^[-+=]")
_NUMBERED = re.compile(r"^(\d{1,9})([.)])")  # would begin a list
RULES = {"left": "---", "right": "---:", "centre": ":---:"}


def as_text(value: object) -> str:
    """Escapes what ``str`` makes of a value, in one line, so that Markdown reads it as that text:
    no markup, no HTML, no links, no pictures, no control characters.

    For what is not ours: names, replies, what files say. In a `table`, bars are escaped by it.
    """
    line = _SPECIAL.sub(r"\\\g<0>", _one_line(value))
    return _NUMBERED.sub(r"\1\\\2", line)


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], align: Sequence[str] = ()
) -> list[str]:
    """Writes a Markdown table, as its lines.

    A cell is what ``str`` makes of it, in one line: bars and control characters in it are escaped,
    and white space, line breaks too, becomes one space.

    align: "left", "right" or "centre" of each of the first columns; the others are left.
    Raises ValueError for a row that has not as many cells as the header.
    """
    rules = [RULES[name] for name in align]
    rules += [RULES["left"]] * (len(header) - len(rules))
    lines = [_line(header), _line(rules)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"found a row of {len(row)} cells, expected {len(header)}")
        lines.append(_line(row))
    return lines


def _line(cells: Iterable[object]) -> str:
    texts = (_one_line(cell).replace("|", "\\|") for cell in cells)
    return "".join(f"| {text} " if text else "| " for text in texts) + "|"


def _one_line(value: object) -> str:
    return printable(" ".join(str(value).split()))
