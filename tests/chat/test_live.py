from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from screens import Screen, keeping, text_of

from mars_gguf.chat.live import rendered, stream
from mars_gguf.reasoning import KNOWN, split


def all_answer(reply: str) -> tuple[str, str]:
    return "", reply


SHOW = """
import pathlib, sys, time
from rich.console import Console
from mars_gguf.chat.live import stream
reply = pathlib.Path(sys.argv[1]).read_text()
def pieces():
    for start in range(0, len(reply), 4):
        while start > len(reply) // 2 and not pathlib.Path(sys.argv[2]).exists():
            time.sleep(0.02)
            yield ""
        time.sleep(0.001)
        yield reply[start : start + 4]
stream(Console(), pieces(), lambda reply: ("", reply))
"""


@pytest.mark.parametrize(
    "reply",
    [
        "".join(f"- item {n}\n" for n in range(140)),
        "```python\n" + "".join(f"item_{n} = 1\n" for n in range(140)) + "```\n",
        "".join(f"Paragraph {n}.\n\n1. **One**\n\n    - sub\n\n" for n in range(16)),
        "Before.\n\n````markdown\n```python\nx = 1\n\ny = 2\n```\n\ntext\n````\n\nAfter.",
    ],
)
def test_a_reply_is_seen_as_it_grows_and_ends_as_if_it_had_come_at_once(
    tmp_path: Path, reply: str
) -> None:
    file, go = tmp_path / "reply.md", tmp_path / "go"
    file.write_text(reply)
    terminal = Screen(tmp_path, [sys.executable, "-c", SHOW, str(file), str(go)])
    try:
        so_far = re.findall(r"\w+", reply[: len(reply) // 2])
        terminal.wait_for(rf"\b{so_far[-2]}\b")
        assert len(terminal.tmux("capture-pane", "-p").rstrip().splitlines()) <= 50
        go.touch()
        shown = terminal.wait_for("^ended with 0")
    finally:
        terminal.tmux("kill-server")
    whole = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    whole.print(rendered(reply))
    expected = re.sub(r"\x1b\[[0-9;]*m", "", whole.file.getvalue())  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in shown[: shown.index("ended with")].splitlines()]
    assert lines == [line.rstrip() for line in expected.splitlines()]


def test_a_thought_is_dim_and_the_answer_is_not() -> None:
    def parts(reply: str) -> tuple[str, str | None]:
        return split(reply, KNOWN[0], True)

    for width in (20, 90):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system="256")
        stream(console, ["Cats *are* ", "nice.</th", "ink>\n\nA **c", "at**."], parts)
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        last = text[text.rindex("\x1b[2mCats *are* nice.") :]
        assert "\x1b[1mcat\x1b[0m" in last and "think" not in last
        assert "\x1b[2mA" not in text


def test_markdown_is_rendered_on_a_terminal_and_left_alone_in_a_pipe() -> None:
    reply = "# Title\n\nSome **bold** words.\n\n```python\nx = 1\n\ny = 2\n```\n\n- one\n- two"
    console = keeping()
    stream(console, iter(reply), all_answer)
    shown = text_of(console)
    assert "**" not in shown
    assert "```" not in shown
    for words in ("Title", "Some bold words.", "x = 1", "y = 2", "• one", "• two"):
        assert words in shown
    pipe = Console(file=io.StringIO(), force_terminal=False)
    stream(pipe, iter(reply), all_answer)
    assert pipe.file.getvalue() == reply + "\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "reply",
    [
        "Use Vec<T>, and\n#include <stdio.h>",
        "<think>\nThey greet me.\n</think>\nHello.",
        "<div>\nin it\n</div>",
        "Roses are red,\nviolets are blue.",
    ],
)
def test_html_is_text_and_lines_end_where_the_model_ended_them(reply: str) -> None:
    console = keeping()
    console.print(rendered(reply))
    shown = [line.rstrip() for line in text_of(console).splitlines()]
    assert shown == reply.split("\n")


@pytest.mark.parametrize(
    "reply",
    [
        "a\x1b]0;title\x07b",
        "see <http://a/%1B[31mred%1B]0;title%07>",
        "and &#x202E; or &#27;[31m",
        "`\x1b[31m` [a](http://b/%1B[31m)",
        "```\n\x9b31m\n```\n\n<b title='\x1b[31m'>",
    ],
)
def test_no_reply_steers_the_terminal(reply: str) -> None:
    console = keeping()
    stream(console, iter([reply]), all_answer)
    console.print(rendered(reply))
    assert isinstance(console.file, io.StringIO)
    raw = console.file.getvalue()
    # What rich itself sends: the cursor hidden and shown, lines erased, bold and the like.
    raw = re.sub(r"\x1b\[(\?25[lh]|\d?[AK]|[0-9;]*m)", "", raw).replace("\r", "")
    assert all(c.isprintable() or c == "\n" for c in raw), ascii(raw)
    assert "31m" not in "".join(re.findall(r"\x1b\[[0-9;]*m", console.file.getvalue()))
