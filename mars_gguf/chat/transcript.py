"""What was said, as files and lines of text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mars_gguf.chat.conversation import Conversation, Turn
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic


def media_of(pictures: int, frames: int) -> str:
    """What a message carries, in brackets."""
    names = [f"{pictures} picture{'s' * (pictures > 1)}"] if pictures else []
    names += [f"video of {frames} frame{'s' * (frames > 1)}"] if frames else []
    return f"[{', '.join(names)}] " if names else ""


def status(turn: Turn) -> str:
    """What became of a turn, in one line."""
    s = turn.steering
    assert s is not None
    did = "steered" if turn.steered else "not steered"
    if s.position in ("thought", "answer"):
        did += f" at the {s.position}"
    rate = f", {turn.tokens_per_second:.1f}/s" if turn.tokens > 1 else ""
    speed = f"{turn.tokens} tokens{rate}, first after {turn.seconds_to_first:.2f} s"
    if s.t is None:
        judged = ["not judged: the thought did not end (-n allows more tokens)"]
    else:
        judged = [f"t {s.t:.2f}", f"gate {s.gate:.2f}", did]
    words = [s.modality, *judged, speed]
    if turn.full:
        words.append("the context is full")
    return " · ".join(words)


def save(conversation: Conversation, path: Path) -> None:
    """Write the conversation: as JSON for a name that ends in .json, else as Markdown.

    Raises MarsError if there is such a file already, or if it cannot be written.
    """
    if os.path.lexists(path):
        raise MarsError(f"{path}: exists already. Give another name, or remove it first.")
    text = "".join(_as_json(conversation) if path.suffix == ".json" else _as_markdown(conversation))
    with atomic(path) as file:
        file.write_text(text, encoding="utf-8")


def _as_json(conversation: Conversation) -> Iterator[str]:
    turns = [
        {
            "system": turn.system,
            "user": turn.request,
            "assistant": turn.answer,
            "mars": turn.steering.report() if turn.steering else None,
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
        asked = media_of(turn.pictures, turn.frames) + _words(turn.request["content"])
        yield f"**User:** {asked.rstrip()}\n\n"
        yield f"**Assistant:** {turn.answer}\n\n*{status(turn)}*\n\n"


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")
