"""A conversation with a steered model: what was said, and what of it still fits the context."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from llama_cpp import mtmd_cpp
from PIL import Image

from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.handlers import ConversationHandler, Messages, prompt_tokens
from mars_gguf.llama import SteeredLlama, Steering
from mars_gguf.media import user_message
from mars_gguf.video import Video, sample

NEVER = 1e30
MARKER = mtmd_cpp.mtmd_default_marker().decode()


@dataclass
class Turn:
    """A request and its answer; ``steering`` is None until the first token was sampled.
    ``prompt`` is all that the model was given, ``seed`` what its tokens were drawn with."""

    request: dict[str, Any]
    prompt: Messages
    seed: int
    answer: str = ""
    steering: Steering | None = None
    tokens: int = 0
    seconds_to_first: float = 0.0
    seconds: float = 0.0
    full: bool = False  # the answer ended because the context did

    @property
    def messages(self) -> Messages:
        return [self.request, {"role": "assistant", "content": self.answer}]

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        spent = self.seconds - self.seconds_to_first
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0


class Conversation:
    """Turns of one conversation, the newest last; the oldest go when the context is full.

    ``sampling`` are arguments of ``Llama.create_chat_completion``. ``notes`` says in words what
    had to be left out for the latest reply.
    """

    def __init__(
        self, llama: SteeredLlama, *, system: str | None = None, sampling: dict[str, Any]
    ) -> None:
        self.llama, self.system, self.sampling = llama, system, sampling
        self.turns: list[Turn] = []
        self.notes: list[str] = []

    def require_sight(self) -> None:
        """Raise MarsError if the model sees no pictures."""
        handler = self.llama.chat_handler
        if not isinstance(getattr(handler, "handler", None), ConversationHandler):
            raise MarsError("the model sees no pictures: it was loaded without --mmproj")

    def messages(self, *, dropped: int = 0) -> Messages:
        """All messages, less the oldest ``dropped`` turns."""
        first: Messages = [{"role": "system", "content": self.system}] if self.system else []
        return first + [m for turn in self.turns[dropped:] for m in turn.messages]

    def reply(
        self, text: str, pictures: Sequence[Image.Image] = (), video: Video | None = None
    ) -> Generator[str, None, None]:
        """Yield the reply piece by piece. What was said is kept, also if the caller stops early;
        a message that fails, or is stopped before its first token, leaves the conversation as it
        was.

        Raises MarsError if the message does not fit the context.
        """
        request, dropped = self._fit(_words(text), pictures, video)
        seed = self.sampling.get("seed")
        prompt = [*self.messages(dropped=dropped), request]
        turn = Turn(request, prompt, random.getrandbits(31) if seed is None else seed)
        try:
            yield from self._generate(turn)
        finally:
            if turn.steering is not None:
                self.turns = [*self.turns[dropped:], turn]

    def unsteered(self) -> Generator[str, None, None]:
        """Yield what the model says to the last prompt with the gate held shut, drawn with the
        same seed. Nothing of it is kept."""
        last = self.turns[-1]
        with _shut_gate(self.llama):
            yield from self._generate(Turn(last.request, last.prompt, last.seed))

    def _generate(self, turn: Turn) -> Generator[str, None, None]:
        llama, began = self.llama, time.perf_counter()
        try:
            chunks: Any = llama.create_chat_completion(
                turn.prompt,  # type: ignore[arg-type]
                stream=True,
                **self.sampling | {"seed": turn.seed},
            )
            for chunk in chunks:
                turn.seconds = time.perf_counter() - began
                piece = chunk["choices"][0]["delta"].get("content")
                if piece:
                    turn.answer += _words(piece)
                    turn.tokens += 1
                    turn.seconds_to_first = turn.seconds_to_first or turn.seconds
                    turn.steering = llama.last_steering
                    yield piece
        except (MarsError, SteeringError):
            raise
        except (RuntimeError, ValueError) as error:  # llama-cpp-python's
            llama.rewind(0)
            raise MarsError(f"llama.cpp could not go on: {error}") from error
        turn.steering = llama.last_steering
        turn.full = llama.n_tokens >= llama.n_ctx() - 1

    def _fit(
        self, text: str, pictures: Sequence[Image.Image], video: Video | None
    ) -> tuple[dict[str, Any], int]:
        """The request, with as many frames as there is room for, and how many of the oldest turns
        have to go for it."""
        self.notes = []
        if pictures or video:
            self.require_sight()
        context = self.llama.n_ctx()
        # Room for a reply: all it may need, but no more than a quarter of the context.
        wanted = self.sampling["max_tokens"]
        limit = context - (min(wanted, context // 4) if wanted > 0 else context // 4)
        frames = video.frames if video else []
        request = user_message(text, [*pictures, *frames])
        alone = self.messages(dropped=len(self.turns))
        needed = self._count([*alone, request])
        while needed > limit and len(frames) > 1:
            share = int(len(frames) * limit / needed)
            frames = sample(frames, max(1, min(len(frames) - 1, share)))
            request = user_message(text, [*pictures, *frames])
            needed = self._count([*alone, request])
        if needed >= context:
            raise MarsError(self._too_long(text, needed, len(pictures) + len(frames)))
        if video and len(frames) < video.total:
            room = len(frames) < len(video.frames)
            why = f", for which the context ({context} tokens) has room" if room else ""
            self.notes.append(f"{video.name}: {len(frames)} of {video.total} frames{why}")
        dropped = 0
        while (
            dropped < len(self.turns)
            and self._count([*self.messages(dropped=dropped), request]) > limit
        ):
            dropped += 1
        if dropped:
            turns = "turn was" if dropped == 1 else f"{dropped} turns were"
            self.notes.append(f"the context ({context} tokens) is full: the oldest {turns} dropped")
        return request, dropped

    def _count(self, messages: Messages) -> int:
        try:
            return prompt_tokens(self.llama, messages)
        except MarsError:
            raise
        except Exception as error:  # a chat template is a program of its own
            raise MarsError(f"the chat template refuses this conversation: {error}") from error

    def _too_long(self, text: str, needed: int, pictures: int) -> str:
        context = self.llama.n_ctx()
        said = f"the message needs {needed} tokens"
        if pictures:
            words = self._count([*self.messages(dropped=len(self.turns)), user_message(text)])
            what = "its picture" if pictures == 1 else f"its {pictures} pictures"
            said += f", {needed - words} of them for {what}"
        return f"{said}; the context has {context}. Give a larger one: --ctx-size {needed + 256}"


def _words(text: str) -> str:
    """``text`` without what libmtmd would take for the place of a picture."""
    return text.replace(MARKER, MARKER.replace("<", "< "))


@contextmanager
def _shut_gate(llama: SteeredLlama) -> Iterator[None]:
    vector = llama.vector
    llama.vector = replace(vector, geometry=replace(vector.geometry, gate_opens=NEVER))
    try:
        yield
    finally:
        llama.vector = vector
