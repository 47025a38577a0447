"""Shows replies on a terminal as they come: as Markdown, with nothing that steers the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import SegmentLines
from rich.spinner import Spinner
from rich.text import Text

from mars_gguf.console import visible, without_echo
from mars_gguf.interrupts import interrupts_held

FRAMES = 15  # a second


def rendered(text: str) -> Markdown:
    """Renders a reply as Markdown that is safe to show, also what its parser decodes from %1B or
    &#x202E;.

    What looks like HTML is text, and lines end where the model ended them.
    """
    markdown = Markdown("", hyperlinks=False)
    parser = MarkdownIt(options_update={"html": False}).enable(["strikethrough", "table"])
    markdown.parsed = parser.parse(visible(text))
    _make_visible(markdown.parsed)
    return markdown


def _make_visible(tokens: Iterable[Token]) -> None:
    for token in tokens:
        token.content = visible(token.content)
        if token.type == "softbreak":
            token.type = "hardbreak"
        _make_visible(token.children or [])


Split = Callable[[str], tuple[str, str | None]]  # a reply into its thought and its answer


def shown(text: str, split: Split) -> RenderableType:
    """Renders a reply: its thought dim and plain, its answer as Markdown."""
    thought, answer = split(text)
    if not thought.strip():
        return rendered(answer or "")
    dim = Text(visible(thought.strip()), style="dim")
    return Group(dim, Text(""), rendered(answer)) if answer else dim


def stream(console: Console, pieces: Iterable[str], split: Split) -> None:
    """Shows a reply as it comes: rendered as Markdown on a terminal, its thought dim; plain text
    elsewhere."""
    if not console.is_terminal:
        for piece in pieces:
            console.out(piece, end="", highlight=False)
        console.out("")
        return
    # What is still to come changes how the last lines look, so those are drawn again and again;
    # what lies above them is printed once, for a terminal cannot redraw more than its height.
    redrawn = max(1, console.height // 2)
    text, printed, due, coming = "", 0, 0.0, iter(pieces)
    with without_echo():
        spinner = Spinner("dots", style="dim")
        with Live(spinner, console=console, refresh_per_second=FRAMES, transient=True):
            while not text.strip() and (first := next(coming, None)) is not None:
                text += first
        # The spinner turns in a thread; no thread may draw while lines are printed above.
        with Live(console=console, auto_refresh=False, transient=True) as live:
            try:
                for piece in chain([""], coming):
                    text += piece
                    if (began := time.monotonic()) < due:
                        continue
                    with interrupts_held():
                        lines = console.render_lines(shown(text, split), pad=False)
                        done = max(printed, len(lines) - redrawn)
                        live.update(_Lines(lines[done:]), refresh=done == printed)
                        if done > printed:
                            console.print(_Lines(lines[printed:done]), end="")
                            printed = done
                    # A long reply takes long to render: that shall not take all of the time.
                    due = time.monotonic() + max(1 / FRAMES, 9 * (time.monotonic() - began))
            finally:
                with interrupts_held():
                    live.update("", refresh=True)
                    if text.strip():
                        lines = console.render_lines(shown(text, split), pad=False)
                        console.print(_Lines(lines[printed:]), end="")


_Lines = partial(SegmentLines, new_lines=True)
