"""The chat as a person sees it: lines read, commands obeyed, replies rendered as they come."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import SegmentLines
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mars_gguf.chat.conversation import Conversation, Turn
from mars_gguf.console import printable, require_utf8
from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.media.images import LONGEST_SIDE, load_image
from mars_gguf.media.video import Video
from mars_gguf.steering import Geometry

termios: Any
try:
    import termios
except ImportError:  # on Windows
    termios = None

FRAMES = 15  # a second
COMMANDS = {
    "/image PATH": "attach a picture to the next message (without PATH: none)",
    "/video PATH": "attach a video to the next message (without PATH: none)",
    "/why": "what steering measured at the last reply",
    "/compare": "the last request again without steering, side by side",
    "/system TEXT": "set the system prompt (without TEXT: remove it)",
    "/clear": "forget the conversation and what is attached",
    "/save FILE": "write the conversation as JSON (*.json) or Markdown",
    "/help": "this list",
    "/exit": "leave (or Ctrl-D); Ctrl-C stops a reply",
}


class Terminal:
    """Reads lines until they end, and shows on ``console`` what the conversation answers.

    ``read_line`` gets the words to prompt with; it raises EOFError at the end. ``open_video`` turns
    a path into a Video.
    """

    def __init__(
        self,
        conversation: Conversation,
        console: Console,
        read_line: Callable[[str], str],
        open_video: Callable[[str], Video],
    ) -> None:
        self.conversation, self.console = conversation, console
        self.read_line, self.open_video = read_line, open_video
        self.pictures: list[Image.Image] = []
        self.video: Video | None = None

    def run(self) -> None:
        """Until /exit or the end of input. What goes wrong with one line is said, and the chat
        goes on."""
        self._say("/help lists the commands.")
        while True:
            try:
                frames = len(self.video.frames) if self.video else 0
                line = self.read_line(f"{_media(len(self.pictures), frames)}> ").strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            name, _, argument = line.partition(" ")
            if name == "/exit":
                return
            try:
                if name.startswith("/"):
                    self._obey(name, argument.strip())
                elif line or self.pictures or self.video:
                    self._answer(require_utf8(line, "the message"))
            except (MarsError, SteeringError, OSError) as error:
                for part in str(error).split("\n"):
                    self.console.print(Text(f"error: {printable(part)}", style="red"))
            except KeyboardInterrupt:
                self._say("stopped")

    def _answer(self, text: str) -> None:
        conversation = self.conversation
        before = conversation.turns[-1] if conversation.turns else None
        pieces = conversation.reply(text, self.pictures, self.video)
        try:
            with closing(pieces):
                stream(self.console, pieces)
        finally:
            turn = conversation.turns[-1] if conversation.turns else None
            if turn is not None and turn is not before:
                self.pictures, self.video = [], None
                if not turn.answer:
                    self._say("(an empty reply)")
                for note in conversation.notes:
                    self._say(note)
                self._say(status(turn))

    def _obey(self, name: str, argument: str) -> None:
        conversation = self.conversation
        match name:
            case "/help":
                self.console.print(_commands())
            case "/image" if argument:
                conversation.require_sight()
                self.pictures.append(load_image(_path(argument, name), LONGEST_SIDE))
            case "/video" if argument:
                conversation.require_sight()
                with _without_echo(), self.console.status("reading the video"):
                    self.video = self.open_video(_path(argument, name))
            case "/image":
                self.pictures = []
            case "/video":
                self.video = None
            case "/clear":
                conversation.clear()
                self.pictures, self.video = [], None
                self._say("the conversation is forgotten")
            case "/system":
                conversation.system = require_utf8(argument, "the system prompt") or None
                self._say(f"the system prompt is {'set' if argument else 'removed'}")
            case "/save":
                path = Path(_path(argument, name))
                save(conversation, path)
                self._say(f"wrote {path}")
            case "/why" | "/compare" if not conversation.turns:
                self._say("nothing was said yet")
            case "/why":
                self.console.print(why(conversation.turns[-1], conversation.llama.vector.geometry))
            case "/compare":
                self._compare(conversation.turns[-1])
            case _:
                is_file = os.path.isfile(f"{name} {argument}".strip())
                hint = "attach a file with /image or /video" if is_file else "see /help"
                self._say(f"no command {name}: {hint}")

    def _compare(self, turn: Turn) -> None:
        if turn.finished and not turn.steered:
            self._say("the gate stayed closed: steering changed nothing")
            return
        with _without_echo(), self.console.status("without steering"):
            unsteered = "".join(self.conversation.unsteered())
        self.console.print(_side_by_side(unsteered, turn.answer))

    def _say(self, words: str) -> None:
        self.console.print(Text(printable(words), style="dim"))


def _media(pictures: int, frames: int) -> str:
    """What a message carries, in brackets."""
    names = [f"{pictures} picture{'s' * (pictures > 1)}"] if pictures else []
    names += [f"video of {frames} frame{'s' * (frames > 1)}"] if frames else []
    return f"[{', '.join(names)}] " if names else ""


def read_with_prompt_toolkit() -> Callable[[str], str]:
    """A reader of lines with editing, the history of this session, and completion by Tab."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import (
        Completer,
        NestedCompleter,
        PathCompleter,
        WordCompleter,
        merge_completers,
    )

    path = PathCompleter(expanduser=True)
    words = [command.split() for command in COMMANDS]
    options: dict[str, Completer | None] = {
        first: path if rest in (["PATH"], ["FILE"]) else None for first, *rest in words
    }
    # By itself the second takes the slash for a word of its own, and knows no "/he".
    completers = [WordCompleter(list(options), sentence=True), NestedCompleter(options)]
    session: PromptSession[str] = PromptSession(
        completer=merge_completers(completers, deduplicate=True), complete_while_typing=False
    )
    return session.prompt


def read_plainly(prompt: str) -> str:
    """A line, asked for on standard error: standard output is a file, or somebody's input."""
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _path(argument: str, command: str) -> str:
    """A path as people type it or drop it onto a terminal: with ~, quotes or backslashes."""
    if not argument:
        raise MarsError(f"{command} needs a path")
    if "\0" in argument:
        raise MarsError(f"{argument}: no file has a name with the character 0 in it")
    if not Path(argument).exists():
        with suppress(ValueError):  # of quotes that do not match: taken literally
            argument = " ".join(shlex.split(argument)) if os.sep == "/" else argument.strip("\"'")
    return os.path.expanduser(argument)


# Replies -----------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """Text that a model wrote, safe to show: all but line breaks and tabs printable."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def rendered(text: str) -> Markdown:
    """A reply as Markdown, safe to show: also what its parser decodes from %1B or &#x202E;. What
    looks like HTML is text, and lines end where the model ended them."""
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


def stream(console: Console, pieces: Iterable[str]) -> None:
    """Show a reply as it comes: rendered as Markdown on a terminal, plain text elsewhere."""
    if not console.is_terminal:
        for piece in pieces:
            console.out(piece, end="", highlight=False)
        console.out("")
        return
    # What is still to come changes how the last lines look, so those are drawn again and again;
    # what lies above them is printed once, for a terminal cannot redraw more than its height.
    redrawn = max(1, console.height // 2)
    text, printed, due, coming = "", 0, 0.0, iter(pieces)
    with _without_echo():
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
                    lines = console.render_lines(rendered(text), pad=False)
                    done = max(printed, len(lines) - redrawn)
                    live.update(_Lines(lines[done:]), refresh=done == printed)
                    if done > printed:
                        console.print(_Lines(lines[printed:done]), end="")
                        printed = done
                    # A long reply takes long to render: that shall not take all of the time.
                    due = time.monotonic() + max(1 / FRAMES, 9 * (time.monotonic() - began))
            finally:
                live.update("", refresh=True)
                if text.strip():
                    lines = console.render_lines(rendered(text), pad=False)
                    console.print(_Lines(lines[printed:]), end="")


_Lines = partial(SegmentLines, new_lines=True)


@contextmanager
def _without_echo() -> Iterator[None]:
    """Let the terminal show nothing of what is typed meanwhile: the ^C of a Ctrl-C would move what
    is being drawn by a line."""
    stdin = sys.stdin
    # A job in the background may not touch the terminal: it would be stopped.
    if (
        termios is None
        or stdin is None
        or not stdin.isatty()
        or os.tcgetpgrp(stdin.fileno()) != os.getpgrp()
    ):
        yield
        return
    before = termios.tcgetattr(stdin)
    quiet = termios.tcgetattr(stdin)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSANOW, before)


def status(turn: Turn) -> str:
    """What became of a turn, in one line."""
    s = turn.steering
    assert s is not None
    did = "steered" if turn.steered else "not steered"
    rate = f", {turn.tokens_per_second:.1f}/s" if turn.tokens > 1 else ""
    speed = f"{turn.tokens} tokens{rate}, first after {turn.seconds_to_first:.2f} s"
    words = [s.modality, f"t {s.t:.2f}", f"gate {s.gate:.2f}", did, speed]
    if turn.full:
        words.append("the context is full")
    return " · ".join(words)


# Commands ----------------------------------------------------------------------------------------


def _commands() -> RenderableType:
    table = Table.grid(padding=(0, 3))
    for usage, purpose in COMMANDS.items():
        table.add_row(Text(usage), Text(purpose, style="dim"))
    return table


def why(turn: Turn, geometry: Geometry) -> RenderableType:
    """What the runtime measured at a reply's first token, with t on a gauge."""
    assert turn.steering is not None
    s, kind = turn.steering, turn.steering.modality
    spread = geometry.spreads.get(kind, geometry.spreads.get("image", geometry.spreads["text"]))
    opens = geometry.gate_opens * spread
    table = Table.grid(padding=(0, 2))
    media = {"text": "no picture", "image": "one picture", "video": "several pictures"}
    table.add_row("modality", f"{s.modality} ({media[s.modality]} in the context)")
    table.add_row("t", gauge(s.t, opens))
    table.add_row("gate", f"{s.gate:.2f}: opens at t = {opens:.2f}; z = {s.z:.1f}")
    if turn.steered:
        limit = f"towards t = {geometry.trust_limit:.2f}"
        table.add_row("strength", f"alpha = {s.alpha:.4g}, {limit}, at block {s.layer} ({s.way})")
    else:
        table.add_row(
            "strength", f"0: the reply is what the model says by itself (block {s.layer})"
        )
    table.add_row("cost", f"{s.milliseconds:.1f} ms")
    return table


def gauge(t: float, opens: float, width: int = 41) -> Text:
    """t between the safe centroid (0) and the unsafe one (1); the gate opens at the colon."""
    low, high = -0.5, 1.5

    def place(value: float) -> int:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(share * (width - 1))

    bar = ["─"] * width
    bar[place(0)], bar[place(1)], bar[place(opens)] = "├", "┤", ":"
    bar[place(t)] = "◂" if t < low else "▸" if t > high else "●"
    line = Text("safe ").append("".join(bar)).append(f" unsafe   {t:.2f}")
    line.stylize("red" if t >= opens else "green", 5 + place(t), 6 + place(t))
    return line


def _side_by_side(unsteered: str, steered: str) -> RenderableType:
    table = Table("without steering", "with steering", box=box.SIMPLE, expand=True)
    table.add_row(rendered(unsteered), rendered(steered))
    if unsteered == steered:
        return Group(table, Text("the same, word for word", style="dim"))
    return table


def save(conversation: Conversation, path: Path) -> None:
    """Write the conversation: as JSON for a name that ends in .json, else as Markdown.

    Raises MarsError if there is such a file already.
    """
    if os.path.lexists(path):
        raise MarsError(f"{path}: exists already. Give another name, or remove it first.")
    text = "".join(_as_json(conversation) if path.suffix == ".json" else _as_markdown(conversation))
    handle, name = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _as_json(conversation: Conversation) -> Iterator[str]:
    turns = [
        {
            "system": turn.system,
            "user": turn.request,
            "assistant": turn.answer,
            "mars": asdict(turn.steering) if turn.steering else None,
        }
        for turn in conversation.turns
    ]
    saved = {"first_in_context": conversation.first, "turns": turns}
    yield json.dumps(saved, ensure_ascii=False, indent=1)
    yield "\n"


def _as_markdown(conversation: Conversation) -> Iterator[str]:
    system = None
    for index, turn in enumerate(conversation.turns):
        if index and index == conversation.first:
            yield "*The context has no room for what is above.*\n\n"
        if turn.system != system:
            yield f"**System:** {turn.system or 'none any longer'}\n\n"
            system = turn.system
        asked = _media(turn.pictures, turn.frames) + _words(turn.request["content"])
        yield f"**User:** {asked.rstrip()}\n\n"
        yield f"**Assistant:** {turn.answer}\n\n*{status(turn)}*\n\n"


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")
