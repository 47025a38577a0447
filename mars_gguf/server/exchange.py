"""One request and what became of it, known to all that works on it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import uuid4

from mars_gguf.runtime.judging import Steering
from mars_gguf.server.checks import RequestError
from mars_gguf.server.settings import DEFAULT_VECTOR, ServerSettings


class ClientGone(Exception):
    """Says that nobody waits for this reply any more."""


class TooLate(RequestError):
    """Says that a reply took longer than the settings allow, at all or while others wait."""


@dataclass
class Exchange:
    """A request and what became of it. The threads that run the model see it too."""

    request_id: str = field(default_factory=lambda: uuid4().hex)
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.perf_counter)
    client: str = ""
    deadline: float = math.inf
    turn_ends: float = math.inf  # if others wait
    others_wait: Callable[[], bool] = lambda: False
    bytes_left: float = math.inf  # of a whole reply
    bytes_a_token: int = 0  # of its log probabilities
    hold: Callable[[int], None] = lambda size: None  # takes note of what is held for it
    vector: str | None = DEFAULT_VECTOR  # None where the model is served unsteered
    model: str | None = None
    prompt: object = None
    steering: Steering | None = None
    first_token: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    responding: bool = False
    error: Exception | None = None

    def begin(self, settings: ServerSettings, others_wait: Callable[[], bool]) -> None:
        """Takes note that the model is at this request from now on."""
        now = time.perf_counter()
        self.deadline, self.turn_ends = now + settings.reply_timeout, now + settings.turn_timeout
        self.others_wait = others_wait

    def spend(self, size: int) -> None:
        """Takes bytes from those that are left. Raises RequestError where there are no more."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise RequestError(
                "the reply is too long to be sent at once: ask for a stream, for fewer tokens or "
                "texts, or without logprobs"
            )


exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange:
    """The exchange of the request that is being answered."""
    current = exchange.get()
    assert current is not None
    return current


def hold(size: int) -> None:
    """Takes note of bytes that are held for the request from now on, until it is answered; of none,
    where ``size`` is negative, any more. Raises RequestError where there is no room (503)."""
    if (current := exchange.get()) is not None:
        current.hold(size)


def require_wanted() -> None:
    """Raises ClientGone or TooLate if the request that is being answered need not be any more."""
    current = exchange.get()
    if current is None:
        return
    if current.client_gone.is_set():
        raise ClientGone
    now = time.perf_counter()
    if now > current.deadline:
        raise TooLate("the reply took too long: ask for fewer tokens, or for a stream")
    if now > current.turn_ends and current.others_wait():
        raise TooLate(
            "the reply took too long while others wait: ask for fewer tokens or a stream, or later",
            503,
        )
