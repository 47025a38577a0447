"""One request and what became of it, known to all that works on it."""

from __future__ import annotations

import asyncio
import math
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import uuid4

from mars_gguf.runtime.judging import Steering
from mars_gguf.server.checks import RequestError
from mars_gguf.server.settings import DEFAULT_VECTOR


class ClientGone(Exception):
    """Says that nobody waits for this reply any more."""


class TooLate(RequestError):
    """Says that a reply took longer than the settings allow."""


@dataclass
class Exchange:
    """A request and what became of it. The threads that run the model see it too."""

    request_id: str = field(default_factory=lambda: uuid4().hex)
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.perf_counter)
    deadline: float = math.inf
    vector: str | None = DEFAULT_VECTOR  # None where the model is served unsteered
    model: str | None = None
    prompt: object = None
    steering: Steering | None = None
    first_token: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    responding: bool = False
    error: Exception | None = None


exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange:
    """The exchange of the request that is being answered."""
    current = exchange.get()
    assert current is not None
    return current


def require_wanted() -> None:
    """Raises ClientGone or TooLate if the request that is being answered need not be any more."""
    current = exchange.get()
    if current is None:
        return
    if current.client_gone.is_set():
        raise ClientGone
    if time.perf_counter() > current.deadline:
        raise TooLate("the reply took too long: ask for fewer tokens, or for a stream")
