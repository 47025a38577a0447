"""The chat as a person sees it: lines read, commands obeyed, replies rendered as they come."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from PIL import Image
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mars_gguf.chat.conversation import Conversation, Turn
from mars_gguf.chat.replies import TakeApart, shown, stream, without_echo
from mars_gguf.chat.transcript import media_of, save, status
from mars_gguf.console import printable, require_utf8, visible
from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.media.images import SHOWN_SIDE, load_image
from mars_gguf.media.video import Video
from mars_gguf.steering import Geometry

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

JUDGED = {
    "prompt": "the first token of the reply",
    "thought": "the first token of the thought",
    "answer": "the first token of the answer, after the thought",
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
                line = self.read_line(f"{media_of(len(self.pictures), frames)}> ").strip()
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
                self.console.print(Text(f"error: {visible(str(error))}", style="red"))
            except KeyboardInterrupt:
                self._say("stopped")

    def _answer(self, text: str) -> None:
        conversation = self.conversation
        before = conversation.turns[-1] if conversation.turns else None
        pieces = conversation.reply(text, self.pictures, self.video)
        try:
            with closing(pieces):
                stream(self.console, pieces, conversation.taken_apart)
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
                self.pictures.append(load_image(_path(argument, name), SHOWN_SIDE))
            case "/video" if argument:
                conversation.require_sight()
                with without_echo(), self.console.status("reading the video"):
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
            judged = turn.steering is not None and turn.steering.position is not None
            kept = "the gate stayed closed" if judged else "the thought did not end"
            self._say(f"{kept}: steering changed nothing")
            return
        with without_echo(), self.console.status("without steering"):
            unsteered = "".join(self.conversation.unsteered())
        table = _side_by_side(unsteered, turn.answer, self.conversation.taken_apart)
        self.console.print(table)

    def _say(self, words: str) -> None:
        self.console.print(Text(printable(words), style="dim"))


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


# Commands ----------------------------------------------------------------------------------------


def _commands() -> RenderableType:
    table = Table.grid(padding=(0, 3))
    for usage, purpose in COMMANDS.items():
        table.add_row(Text(usage), Text(purpose, style="dim"))
    return table


def why(turn: Turn, geometry: Geometry) -> RenderableType:
    """What the runtime measured at the token that it judged, with t on a gauge."""
    assert turn.steering is not None
    s, kind = turn.steering, turn.steering.modality
    opens = geometry.thresholds["image" if kind not in geometry.thresholds else kind]
    table = Table.grid(padding=(0, 2))
    media = {"text": "no picture", "image": "one or several pictures", "video": "a film"}
    table.add_row("modality", f"{s.modality}: {media[s.modality]} in the context")
    if s.t is None or s.position is None:
        table.add_row("judged", "nothing: the thought did not end. Allow more tokens with -n")
        return table
    table.add_row("judged", JUDGED[s.position])
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


def _side_by_side(unsteered: str, steered: str, take_apart: TakeApart) -> RenderableType:
    table = Table("without steering", "with steering", box=box.SIMPLE, expand=True)
    table.add_row(shown(unsteered, take_apart), shown(steered, take_apart))
    if unsteered == steered:
        return Group(table, Text("the same, word for word", style="dim"))
    return table
