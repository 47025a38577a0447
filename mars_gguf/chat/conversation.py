"""A conversation with a steered model: what was said, and what of it still fits the context."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp
from PIL import Image

from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.handlers import ConversationHandler, Messages, prompt_tokens
from mars_gguf.media.images import data_url, message_of_parts, picture_part, user_message
from mars_gguf.media.video import Video, sample
from mars_gguf.runtime.llama import SteeredLlama, Steering

NEVER = 1e30
MARKER = mtmd_cpp.mtmd_default_marker().decode()
BLANK = data_url(Image.new("RGB", (8, 8)))
Tokens = npt.NDArray[np.intc]


@dataclass
class Turn:
    """A request and its answer; ``steering`` is None until the first token was sampled.
    ``prompt`` is all that the model was given, ``seed`` what its tokens were drawn with."""

    request: dict[str, Any]
    prompt: Messages
    seed: int
    pictures: int = 0  # attached by themselves, not as frames
    start: int = 0  # position in the context from which on its prompt was evaluated
    answer: str = ""
    steering: Steering | None = None
    tokens: int = 0
    seconds_to_first: float = 0.0
    seconds: float = 0.0
    finished: bool = False  # was not stopped
    full: bool = False  # the answer ended because the context did

    @property
    def system(self) -> str | None:
        """The system prompt that it was answered with."""
        begin = self.prompt[0]
        return str(begin["content"]) if begin["role"] == "system" else None

    @property
    def frames(self) -> int:
        """How many frames of a video the request shows."""
        content = self.request["content"]
        parts = [] if isinstance(content, str) else content
        return sum(part["type"] == "image_url" for part in parts) - self.pictures

    @property
    def messages(self) -> Messages:
        return [self.request, {"role": "assistant", "content": self.answer}]

    @property
    def steered(self) -> bool:
        return self.steering is not None and self.steering.alpha > 0

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first."""
        spent = self.seconds - self.seconds_to_first
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0


class Conversation:
    """Turns of one conversation, the newest last. When the context is full the model is not given
    the oldest any longer: ``first`` is the index of the first that it is given.

    ``sampling`` are arguments of ``Llama.create_chat_completion``. ``notes`` says in words what
    had to be left out for the latest reply.
    """

    def __init__(
        self, llama: SteeredLlama, *, system: str | None = None, sampling: dict[str, Any]
    ) -> None:
        self.llama, self.system, self.sampling = llama, system, sampling
        self._sizes: dict[str, int] = {}  # tokens of pictures beyond those of a blank one, by URL
        self.clear()

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.turns: list[Turn] = []
        self.first = 0
        self.notes: list[str] = []

    def require_sight(self) -> None:
        """Raise MarsError if the model sees no pictures."""
        handler = self.llama.chat_handler
        if not isinstance(getattr(handler, "handler", None), ConversationHandler):
            raise MarsError("the model sees no pictures: it was loaded without --mmproj")

    def messages(self, first: int | None = None) -> Messages:
        """The messages that the model is given, the turns from index ``first`` on."""
        system = _words(self.system or "")
        start: Messages = [{"role": "system", "content": system}] if system else []
        kept = self.turns[self.first if first is None else first :]
        return start + [m for turn in kept for m in turn.messages]

    def reply(
        self, text: str, pictures: Sequence[Image.Image] = (), video: Video | None = None
    ) -> Generator[str, None, None]:
        """Yield the reply piece by piece. What was said is kept, also if the caller stops early;
        a message that fails, or is stopped before its first token, leaves the conversation as it
        was.

        Raises MarsError if the message does not fit the context.
        """
        began = time.perf_counter()
        request, first = self._fit(_words(text), pictures, video)
        seed = self.sampling.get("seed")
        prompt = [*self.messages(first), request]
        seed = random.getrandbits(31) if seed is None else seed
        turn = Turn(request, prompt, seed, len(pictures))
        try:
            yield from self._generate(turn, began)
        finally:
            if turn.steering is not None:
                self.turns, self.first = [*self.turns, turn], first

    def unsteered(self) -> Generator[str, None, None]:
        """Yield what the model says to the last prompt with the gate held shut, drawn with the
        same seed and evaluated in the same batches, so that nothing but steering makes it differ.
        Nothing of it is kept."""
        last, llama = self.turns[-1], self.llama
        llama.rewind(min(last.start, llama.n_reusable))
        with _shut_gate(llama):
            yield from self._generate(Turn(last.request, last.prompt, last.seed))

    def _generate(self, turn: Turn, began: float | None = None) -> Generator[str, None, None]:
        llama, began = self.llama, began or time.perf_counter()
        held = llama.input_ids[: llama.n_reusable].copy()
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
                    if not turn.tokens:
                        turn.start = _same(held, llama.input_ids[: llama.n_tokens])
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
        turn.steering, turn.finished = llama.last_steering, True
        turn.full = llama.context_full

    def _fit(
        self, text: str, pictures: Sequence[Image.Image], video: Video | None
    ) -> tuple[dict[str, Any], int]:
        """The request, with as many frames as there is room for, and the index of the first turn
        that can stay with it."""
        self.notes = []
        if pictures or video:
            self.require_sight()
        context = self.llama.n_ctx()
        # Room for a reply: all it may need, but no more than a quarter of the context.
        wanted = self.sampling["max_tokens"]
        limit = context - (min(wanted, context // 4) if wanted > 0 else context // 4)
        shown = [picture_part(picture) for picture in pictures]
        frames = [picture_part(frame) for frame in video.frames] if video else []
        request = message_of_parts(text, [*shown, *frames])
        alone = self.messages(len(self.turns))
        needed = self._count([*alone, request])
        # Half of the context is left to the turns that follow a video.
        while needed > context // 2 and len(frames) > 1:
            share = int(len(frames) * (context // 2) / needed)
            frames = sample(frames, max(1, min(len(frames) - 1, share)))
            request = message_of_parts(text, [*shown, *frames])
            needed = self._count([*alone, request])
        if needed >= context:
            raise MarsError(self._too_long(text, needed, len(pictures) + len(frames)))
        if video and len(frames) < video.total:
            room = len(frames) < len(video.frames)
            why = f", for which half of the context ({context} tokens) has room" if room else ""
            self.notes.append(f"{video.name}: {len(frames)} of {video.total} frames{why}")
        first = self.first
        if self._count([*self.messages(first), request]) > limit:
            # Half of the context is freed, for whatever follows the gap is evaluated anew.
            while first < len(self.turns) and (
                self._count([*self.messages(first), request]) > context // 2
            ):
                first += 1
        if first > self.first:
            self.notes.append(_dropped(self.turns[self.first : first], context))
        return request, first

    def _count(self, messages: Messages) -> int:
        """Tokens of a prompt. A picture is measured once, not with every prompt that it is in: it
        takes as many more than a blank one wherever it stands."""
        parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        for url in set(urls) - self._sizes.keys():
            self._sizes[url] = self._tokens([_showing(url)]) - self._tokens([_showing(BLANK)])
        return self._tokens(list(map(_blank, messages))) + sum(self._sizes[url] for url in urls)

    def _tokens(self, messages: Messages) -> int:
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
            words = self._count([*self.messages(len(self.turns)), user_message(text)])
            what = "its picture" if pictures == 1 else f"its {pictures} pictures"
            said += f", {needed - words} of them for {what}"
        larger = min(needed + 256, self.llama._model.n_ctx_train())
        if larger > needed:
            return f"{said}; the context has {context}. Give a larger one: --ctx-size {larger}"
        return (
            f"{said}; the context has {context}, and the model was trained for {larger}: "
            "shorten the message" + " or show it less" * bool(pictures)
        )


def _same(held: Tokens, given: Tokens) -> int:
    """Length of the beginning that both have."""
    n = min(len(held), len(given))
    differ = np.flatnonzero(held[:n] != given[:n])
    return int(differ[0]) if len(differ) else n


def _showing(url: str) -> dict[str, Any]:
    return message_of_parts("What is it?", [{"type": "image_url", "image_url": {"url": url}}])


def _blank(message: dict[str, Any]) -> dict[str, Any]:
    """The message with blank pictures in the place of its own."""
    if isinstance(message["content"], str):
        return message
    blank = {"type": "image_url", "image_url": {"url": BLANK}}
    parts = [blank if part["type"] == "image_url" else part for part in message["content"]]
    return message | {"content": parts}


def _dropped(turns: Sequence[Turn], context: int) -> str:
    what = "the oldest turn was" if len(turns) == 1 else f"the oldest {len(turns)} turns were"
    counts = {
        "picture": sum(turn.pictures for turn in turns),
        "video": sum(turn.frames > 0 for turn in turns),
    }
    media = " and ".join(f"{n} {name}{'s' * (n > 1)}" for name, n in counts.items() if n)
    shown = f", with {media}" if media else ""
    return f"the context ({context} tokens) is full: {what} dropped{shown}"


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
