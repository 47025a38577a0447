"""Asks one thing, without a chat: the request of -p and of standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import closing

from rich.console import Console

from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.live import stream
from mars_gguf.console import printable, require_utf8
from mars_gguf.errors import MarsError


def one_prompt(given: str | None, *, shows: bool, as_json: bool) -> str | None:
    """Reads the one request of -p and of standard input; None if a person is there to chat.

    given: the text of -p; "-" is standard input alone. shows: whether the request shows something,
    so that it needs no words. as_json: whether the reply is to be JSON, which no chat is.
    """
    typed = sys.stdin is not None and sys.stdin.isatty()
    if given is None and typed:
        if as_json:
            raise MarsError("--json is for one reply: give --prompt, or a prompt on standard input")
        return None
    if given in (None, "-") and sys.stdin is None:
        raise MarsError("no standard input to read a prompt from. Give one with --prompt.")
    parts = [] if given is None or given == "-" else [require_utf8(given, "--prompt")]
    if given == "-" or (sys.stdin is not None and not typed):
        piped = sys.stdin.buffer.read().decode(errors="surrogateescape")
        parts.append(require_utf8(piped, "standard input").strip())
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt and not shows:
        raise MarsError("the prompt is empty, expected some text")
    return prompt


def answer_once(
    conversation: Conversation, pieces: Generator[str, None, None], *, as_json: bool
) -> None:
    """Prints the reply that comes in ``pieces``, then what had to be left out of its request."""
    with closing(pieces):
        if as_json:
            reply, mars = "".join(pieces), conversation.llama.last_steering
            print(json.dumps({"reply": reply, "mars": mars.report() if mars else None}))
        else:
            stream(Console(), pieces, conversation.taken_apart)
    for note in conversation.notes:
        print(printable(note), file=sys.stderr)
