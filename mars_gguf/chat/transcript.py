"""Saves what was said, as JSON or Markdown."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.words import media_of, status
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic
from mars_gguf.media.images import url_of


def save(conversation: Conversation, path: Path) -> None:
    """Writes the conversation: as JSON for a name that ends in .json, else as Markdown.

    Raises MarsError if there is such a file already, or if it cannot be written.
    """
    if os.path.lexists(path):
        raise MarsError(f"{path}: exists already. Give another name, or remove it first.")
    text = _as_json(conversation) if path.suffix == ".json" else _as_markdown(conversation)
    with atomic(path) as file:
        file.write_text(text, encoding="utf-8")


def _as_json(conversation: Conversation) -> str:
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
    return json.dumps(saved, ensure_ascii=False, indent=1, default=url_of) + "\n"


def _as_markdown(conversation: Conversation) -> str:
    text, system = "", None
    for index, turn in enumerate(conversation.turns):
        if index and index == conversation.first:
            text += "*The context has no room for what is above.*\n\n"
        if turn.system != system:
            system = turn.system
            text += f"**System:** {system or 'none any longer'}\n\n"
        content = turn.request["content"]
        words = (
            content
            if isinstance(content, str)
            else " ".join(part["text"] for part in content if part["type"] == "text")
        )
        asked = media_of(turn.pictures, turn.frames) + words
        text += f"**User:** {asked.rstrip()}\n\n"
        text += f"**Assistant:** {turn.answer}\n\n*{status(turn)}*\n\n"
    return text
