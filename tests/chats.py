"""Chats with a steered model on a terminal that keeps what it was shown."""

from __future__ import annotations

from typing import Any

from models import picture
from screens import keeping, text_of

from mars_gguf.chat.conversation import Conversation
from mars_gguf.chat.terminal import Terminal
from mars_gguf.errors import MarsError
from mars_gguf.media.video import Video
from mars_gguf.runtime.llama import SteeredLlama

SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "repeat_penalty": 1.0}


def chat(llama: SteeredLlama, *lines: str, **sampling: Any) -> tuple[str, Conversation]:
    """What is shown, and the conversation, after these lines were typed."""
    conversation = Conversation(llama, sampling=SAMPLING | sampling)
    typed, console = iter(lines), keeping()

    def read_line(prompt: str) -> str:
        console.print(prompt, end="", markup=False)
        line = next(typed, None)
        if line is None:
            raise EOFError
        if line == "<Ctrl-C>":
            raise KeyboardInterrupt
        return line

    def read_video(path: str) -> Video:
        if path != "clip.mp4":
            raise MarsError(f"{path}: no such file; expected a video")
        return Video(path, [picture(1), picture(2)], 2)

    Terminal(conversation, console, read_line, read_video).run()
    return text_of(console), conversation
