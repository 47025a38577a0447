"""The chat as a person sees it: lines read, commands obeyed, replies shown as they come."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mars_gguf.chat.conversation import Conversation, Turn
from mars_gguf.chat.lines import ReadLine, typed_path
from mars_gguf.chat.live import stream
from mars_gguf.chat.transcript import save
from mars_gguf.chat.words import media_of, side_by_side, status, why
from mars_gguf.console import printable, require_utf8, visible, without_echo
from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.media.images import SHOWN_SIDE, load_image
from mars_gguf.media.video import Video

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


@dataclass
class Terminal:
    """Reads lines until they end, and shows on ``console`` what the conversation answers.

    ``read_line`` gets the words to prompt with; it raises EOFError at the end. ``read_video`` turns
    a path into a Video. ``pictures`` and ``video`` are attached to the next message.
    """

    conversation: Conversation
    console: Console
    read_line: ReadLine
    read_video: Callable[[str], Video]
    pictures: list[Image.Image] = field(default_factory=list)
    video: Video | None = None

    def run(self) -> None:
        """Answers and obeys until /exit or the end of input. What goes wrong with one line is said,
        and the chat goes on."""
        self._say("/help lists the commands.")
        while True:
            frames = len(self.video.frames) if self.video else 0
            try:
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
        conversation, known = self.conversation, len(self.conversation.turns)
        pieces = conversation.reply(text, self.pictures, self.video)
        try:
            with closing(pieces):
                stream(self.console, pieces, conversation.split)
        finally:
            if len(conversation.turns) > known:  # also one that was stopped
                turn = conversation.turns[-1]
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
                self.pictures.append(load_image(typed_path(argument, name), SHOWN_SIDE))
            case "/video" if argument:
                conversation.require_sight()
                with without_echo(), self.console.status("reading the video"):
                    self.video = self.read_video(typed_path(argument, name))
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
                path = Path(typed_path(argument, name))
                save(conversation, path)
                self._say(f"wrote {path}")
            case "/why" | "/compare" if not conversation.turns:
                self._say("nothing was said yet")
            case "/why":
                geometry = conversation.llama.policies[0].geometry
                self.console.print(why(conversation.turns[-1], geometry))
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
        table = side_by_side(unsteered, turn.answer, self.conversation.split)
        self.console.print(table)

    def _say(self, words: str) -> None:
        self.console.print(Text(printable(words), style="dim"))


def _commands() -> Table:
    table = Table.grid(padding=(0, 3))
    for usage, purpose in COMMANDS.items():
        table.add_row(Text(usage), Text(purpose, style="dim"))
    return table
