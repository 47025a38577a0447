"""One request and what became of it, handed to all that works on it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import uuid4

from mars_gguf.errors import SteeringError
from mars_gguf.runtime.judging import Steering
from mars_gguf.server.http_errors import ClientGone
from mars_gguf.server.request_limits import exceeded
from mars_gguf.server.settings import DEFAULT_VECTOR, ServerSettings


@dataclass
class Exchange:
    """A request and what became of it. The thread that runs the models sees it too."""

    request_id: str = field(default_factory=lambda: uuid4().hex)
    client: str = ""
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.perf_counter)
    deadline: float = math.inf
    turn_ends: float = math.inf  # if others wait
    others_wait: Callable[[], bool] = lambda: False
    bytes_left: float = math.inf  # of a whole reply
    bytes_a_token: int = 0  # of its log probabilities
    # Takes note of bytes that are held for it from now on, until it is answered; of none, where
    # they are less than 0, any more. Raises RequestError where there is no room (503).
    hold: Callable[[int], None] = lambda size: None
    until_turn: AsyncExitStack = field(default_factory=AsyncExitStack)  # what it has up to then
    vector: str | None = DEFAULT_VECTOR  # None where the model is served unsteered
    model: str | None = None
    prompt: object = None
    steering: Steering | None = None
    first_token: float | None = None
    tokens: int = 0
    responding: bool = False
    error: Exception | None = None

    def begin(self, settings: ServerSettings, others_wait: Callable[[], bool]) -> None:
        """Takes note that the model is at this request from now on."""
        now = time.perf_counter()
        self.deadline, self.turn_ends = now + settings.reply_timeout, now + settings.turn_timeout
        self.others_wait = others_wait

    def require_wanted(self) -> None:
        """Raises ClientGone if nobody waits for the reply any more, RequestError if it takes longer
        than the settings allow, at all or while others wait."""
        if self.client_gone.is_set():
            raise ClientGone
        now = time.perf_counter()
        if now > self.deadline:
            raise exceeded("reply_seconds")
        if now > self.turn_ends and self.others_wait():
            raise exceeded("turn_seconds")

    def add_token(self, steering: Steering | None) -> None:
        """Takes note of a token, and of what steering did to the reply."""
        if steering is None and self.vector is not None:
            raise SteeringError("a token was sampled that steering had not seen")
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.steering = steering
        self.tokens += 1

    def spend(self, size: int) -> None:
        """Takes bytes from those that are left. Raises RequestError where there are no more."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise exceeded("reply")
