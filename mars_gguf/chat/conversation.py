"""A conversation with a steered model: what was said, and what of it still fits the context."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.handlers import ConversationHandler, Messages, prompt_tokens
from mars_gguf.llama import SteeredLlama, Steering
from mars_gguf.media import user_message
from mars_gguf.video import Video, sample

NEVER = 1e30


@dataclass
class Turn:
    """A request and its answer; ``steering`` is None until the first token was sampled."""

    request: dict[str, Any]
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

    @property
    def _sees(self) -> bool:
        handler = self.llama.chat_handler
        return isinstance(getattr(handler, "handler", None), ConversationHandler)

    def messages(self, *, before: int | None = None) -> Messages:
        """All messages, or those before the turn with index ``before``."""
        first: Messages = [{"role": "system", "content": self.system}] if self.system else []
        return first + [m for turn in self.turns[:before] for m in turn.messages]

    def reply(
        self, text: str, pictures: Sequence[Image.Image] = (), video: Video | None = None
    ) -> Generator[str, None, None]:
        """Yield the reply piece by piece. What was said is kept, also if the caller stops early;
        a message that fails, or is stopped before the first piece, leaves the conversation as it
        was.

        Raises MarsError if the message does not fit the context.
        """
        request = self._fit(text, pictures, video)
        turn = Turn(request)
        try:
            yield from self._generate(turn, [*self.messages(), request])
        finally:
            if turn.answer:
                self.turns.append(turn)

    def unsteered(self) -> Generator[str, None, None]:
        """Yield what the model says to the last request with the gate held shut. Nothing of it is
        kept."""
        last = len(self.turns) - 1
        prompt = [*self.messages(before=last), self.turns[last].request]
        with _shut_gate(self.llama):
            yield from self._generate(Turn(self.turns[last].request), prompt)

    def _generate(self, turn: Turn, messages: Messages) -> Generator[str, None, None]:
        began = time.perf_counter()
        try:
            chunks: Any = self.llama.create_chat_completion(
                messages,  # type: ignore[arg-type]
                stream=True,
                **self.sampling,
            )
            for chunk in chunks:
                turn.seconds = time.perf_counter() - began
                piece = chunk["choices"][0]["delta"].get("content")
                if piece:
                    turn.answer += piece
                    turn.tokens += 1
                    turn.seconds_to_first = turn.seconds_to_first or turn.seconds
                    turn.steering = self.llama.last_steering
                    yield piece
        except ValueError as error:  # llama-cpp-python's
            raise error if isinstance(error, MarsError) else MarsError(str(error)) from error
        turn.steering = self.llama.last_steering
        turn.full = self.llama.n_tokens >= self.llama.n_ctx() - 1

    def _fit(
        self, text: str, pictures: Sequence[Image.Image], video: Video | None
    ) -> dict[str, Any]:
        """The request, with as many frames as there is room for; drops turns to make room."""
        self.notes = []
        if (pictures or video) and not self._sees:
            raise MarsError("the model sees no pictures: it was loaded without --mmproj")
        context = self.llama.n_ctx()
        # Room for a reply: all it may need, but no more than a quarter of the context.
        limit = context - min(self.sampling["max_tokens"], context // 4)
        frames = video.frames if video else []
        request = user_message(text, [*pictures, *frames])
        alone = self.messages(before=0)
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
        total = self._count([*self.messages(), request])
        dropped = 0
        while total > limit and self.turns:
            del self.turns[0]
            dropped += 1
            total = self._count([*self.messages(), request])
        if dropped:
            turns = "turn was" if dropped == 1 else f"{dropped} turns were"
            self.notes.append(f"the context ({context} tokens) is full: the oldest {turns} dropped")
        return request

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
            words = self._count([*self.messages(before=0), user_message(text)])
            what = "its picture" if pictures == 1 else f"its {pictures} pictures"
            said += f", {needed - words} of them for {what}"
        return f"{said}; the context has {context}. Give a larger one: --ctx-size {needed + 256}"


@contextmanager
def _shut_gate(llama: SteeredLlama) -> Iterator[None]:
    vector = llama.vector
    llama.vector = replace(vector, geometry=replace(vector.geometry, gate_opens=NEVER))
    try:
        yield
    finally:
        llama.vector = vector
