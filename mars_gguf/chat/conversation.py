"""Keeps a conversation with a steered model, and gives the model what of it fits the context."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from mars_gguf.errors import MarsError, SteeringError
from mars_gguf.media.images import message_of_parts, picture_part, user_message, video_part
from mars_gguf.media.video import Video, sample
from mars_gguf.reasoning import split
from mars_gguf.runtime.chunks import n_alike
from mars_gguf.runtime.judging import Steering
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.messages import MARKER

Message = dict[str, Any]
Messages = list[Message]
BLANK = picture_part(Image.new("RGB", (8, 8)))


@dataclass
class Turn:
    """A request and its answer.

    prompt: all that the model was given. seed: its tokens were drawn with it. steering: None until
    the first token was sampled.
    """

    prompt: Messages
    seed: int
    start: int = 0  # position in the context from which on its prompt was evaluated
    answer: str = ""
    steering: Steering | None = None
    tokens: int = 0
    seconds_to_first: float = 0.0
    seconds: float = 0.0
    finished: bool = False  # was not stopped
    full: bool = False  # the answer ended because the context did

    @property
    def request(self) -> Message:
        """The message of the user."""
        return self.prompt[-1]

    @property
    def system(self) -> str | None:
        """The system prompt that it was answered with."""
        begin = self.prompt[0]
        return str(begin["content"]) if begin["role"] == "system" else None

    @property
    def pictures(self) -> int:
        """Counts the still pictures that the request shows."""
        return sum(part["type"] == "image_url" for part in _media(self.request))

    @property
    def frames(self) -> int:
        """Counts the frames of a film that the request shows."""
        return sum(len(p["video"]) for p in _media(self.request) if p["type"] == "video")

    @property
    def messages(self) -> Messages:
        """The turn as later prompts show it.

        Should the model have said what stands for a picture in prompts, it is written otherwise.
        """
        answer = self.answer.replace(MARKER, MARKER.replace("<", "< "))
        return [self.request, {"role": "assistant", "content": answer}]

    @property
    def steered(self) -> bool:
        return self.steering is not None and self.steering.alpha > 0

    @property
    def tokens_per_second(self) -> float:
        """The speed of the tokens after the first."""
        spent = self.seconds - self.seconds_to_first
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0


class Conversation:
    """Asks the model in turns, and keeps them, the newest last.

    When the context is full the model is not given the oldest any longer: ``first`` is the index of
    the first that it is given. ``sampling`` are arguments of ``Llama.create_chat_completion``.
    ``notes`` says in words what had to be left out for the latest reply.
    """

    def __init__(
        self, llama: SteeredLlama, *, system: str | None = None, sampling: dict[str, Any]
    ) -> None:
        self.llama, self.system, self.sampling = llama, system, sampling
        self.clear()

    def clear(self) -> None:
        """Forgets what was said; the system prompt stays."""
        self.turns: list[Turn] = []
        self.first = 0
        self.notes: list[str] = []
        self._sizes: dict[tuple[str, ...], int] = {}  # tokens of media, see _count

    def require_sight(self) -> None:
        """Raises MarsError if the model sees no pictures."""
        if self.llama.projector is None:
            raise MarsError("the model sees no pictures: it was loaded without --mmproj")

    def messages(self, first: int | None = None) -> Messages:
        """Gathers the messages that the model is given: the turns from index ``first`` on."""
        start = [{"role": "system", "content": self.system}] if self.system else []
        kept = self.turns[self.first if first is None else first :]
        return start + [m for turn in kept for m in turn.messages]

    def reply(
        self, text: str, pictures: Sequence[Image.Image] = (), video: Video | None = None
    ) -> Generator[str, None, None]:
        """Yields the reply piece by piece, and keeps what was said, also if the caller stops early.

        A message that fails, or is stopped before its first token, leaves the conversation as it
        was. Raises MarsError if the message does not fit the context.
        """
        began = time.perf_counter()
        said = (policy.caution(self.system) for policy in self.llama.policies)
        self.notes = [note for note in said if note]
        request = self._request(text, pictures, video)
        first = self._first_with_room_for(request)
        seed = self.sampling.get("seed")
        seed = random.getrandbits(31) if seed is None else seed
        turn = Turn([*self.messages(first), request], seed)
        try:
            yield from self._generate(turn, began)
        finally:
            if turn.steering is not None:
                self.turns, self.first = [*self.turns, turn], first

    def split(self, reply: str) -> tuple[str, str | None]:
        """Splits a reply into its thought and its answer (mars_gguf.reasoning.split)."""
        template = self.llama.template
        return split(reply, template.thinks, template.begins_thought)

    def unsteered(self) -> Generator[str, None, None]:
        """Yields what the model says to the last prompt with the gate held shut.

        It is drawn with the same seed and evaluated in the same batches, so that nothing but
        steering makes it differ. Nothing of it is kept.
        """
        last, llama = self.turns[-1], self.llama
        llama.context.rewind(min(last.start, llama.context.n_reusable))
        with llama.using(*(replace(policy, gate="shut") for policy in llama.policies)):
            yield from self._generate(Turn(last.prompt, last.seed), time.perf_counter())

    def _generate(self, turn: Turn, began: float) -> Generator[str, None, None]:
        llama = self.llama
        held = llama.context.tokens[: llama.context.n_reusable]
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
                        turn.start = n_alike(held, llama.context.tokens)
                        turn.seconds_to_first = turn.seconds
                    turn.steering = llama.last_steering
                    turn.answer += piece
                    turn.tokens += 1
                    yield piece
        except (MarsError, SteeringError):
            raise
        except (RuntimeError, ValueError) as error:  # llama-cpp-python's
            llama.context.rewind(0)
            raise MarsError(f"llama.cpp could not go on: {error}") from error
        turn.steering, turn.finished = llama.last_steering, True
        turn.full = llama.context.full

    # What fits ---------------------------------------------------------------------------------

    def _request(self, text: str, pictures: Sequence[Image.Image], video: Video | None) -> Message:
        """Makes the user's message, with as many frames of the film as half of the context has room
        for: the other half is left to the turns that follow."""
        if pictures or video:
            self.require_sight()
        context, before = self.llama.n_ctx(), self.messages(len(self.turns))
        shown = [picture_part(picture) for picture in pictures]
        film = video_part(video.frames) if video else None
        request = message_of_parts(text, [*shown, film] if film else shown)
        needed = self._count([*before, request])
        while film and needed > context // 2 and (n := len(film["video"])) > 1:
            share = int(n * (context // 2) / needed)
            film = film | {"video": sample(film["video"], max(1, min(n - 1, share)))}
            request = message_of_parts(text, [*shown, film])
            needed = self._count([*before, request])
        if needed >= context:
            raise MarsError(self._too_long(request, text, needed))
        if video and film and (n := len(film["video"])) < video.total:
            room = n < len(video.frames)
            why = f", for which half of the context ({context} tokens) has room" if room else ""
            self.notes.append(f"{video.name}: {n} of {video.total} frames{why}")
        return request

    def _first_with_room_for(self, request: Message) -> int:
        """Finds the first turn that can stay with the request, by its index."""
        context, wanted = self.llama.n_ctx(), self.sampling["max_tokens"]
        # Room for a reply: all it may need, but no more than a quarter of the context.
        limit = context - (min(wanted, context // 4) if wanted > 0 else context // 4)
        first = self.first
        if self._count([*self.messages(first), request]) > limit:
            # Half of the context is freed, for whatever follows the gap is evaluated anew.
            while first < len(self.turns) and (
                self._count([*self.messages(first), request]) > context // 2
            ):
                first += 1
        if first > self.first:
            self.notes.append(_dropped(self.turns[self.first : first], context))
        return first

    def _count(self, messages: Messages) -> int:
        """Counts the tokens of a prompt.

        Cutting up a picture takes long, so it is done once, not with every prompt that it is in: it
        takes as many tokens more than a blank one wherever it stands.
        """
        media = [part for message in messages for part in _media(message)]
        for part in media:
            if _urls(part) not in self._sizes:
                alone, blank = [message_of_parts("What?", [p]) for p in (part, BLANK)]
                self._sizes[_urls(part)] = self._tokens([alone]) - self._tokens([blank])
        beyond_blank = sum(self._sizes[_urls(part)] for part in media)
        return self._tokens(list(map(_blanked, messages))) + beyond_blank

    def _tokens(self, messages: Messages) -> int:
        return sum(chunk.n_tokens for chunk in self.llama.chunks(messages))

    def _too_long(self, request: Message, text: str, needed: int) -> str:
        context = self.llama.n_ctx()
        said = f"the message needs {needed} tokens"
        pictures = sum(len(_urls(part)) for part in _media(request))
        if pictures:
            words = self._tokens([*self.messages(len(self.turns)), user_message(text)])
            what = "its picture" if pictures == 1 else f"its {pictures} pictures"
            said += f", {needed - words} of them for {what}"
        larger = min(needed + 256, self.llama.context.n_trained)
        if larger > needed:
            return f"{said}; the context has {context}. Give a larger one: --ctx-size {larger}"
        return (
            f"{said}; the context has {context}, and the model was trained for {larger}: "
            "shorten the message" + " or show it less" * bool(pictures)
        )


def _media(message: Message) -> list[dict[str, Any]]:
    """Picks the pictures and films among the parts of a message."""
    content = message["content"]
    return [] if isinstance(content, str) else [p for p in content if p["type"] != "text"]


def _urls(part: dict[str, Any]) -> tuple[str, ...]:
    """Reads the URLs of a picture, or of the frames of a film."""
    return tuple(part["video"]) if part["type"] == "video" else (part["image_url"]["url"],)


def _blanked(message: Message) -> Message:
    """Puts a blank picture in the place of each of the message's pictures and films."""
    if not _media(message):
        return message
    parts = [part if part["type"] == "text" else BLANK for part in message["content"]]
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
