"""Receives the bodies of requests within limits of size, time and memory, keeps account of what is
held for them, and looks at them as JSON before they are made into requests, which takes far more
time and memory."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.requests import Request
from starlette.types import Receive

from mars_gguf.server import request_limits
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.settings import ServerSettings

MAX_TEXT = 4 << 20  # characters besides pictures and films: more than any context holds
SMALL = 256 << 10  # bytes that are always taken, so that pictures do not keep questions out
MAX_MARKS = 1 << 19  # of , { and [, each at most a value of 100 bytes; a text has them as well
MAX_VALUES = 50_000
MAX_DEPTH = 100
MAX_TOKENS = 1 << 18  # in a list of nothing else, to be made into text
# What is wrong with one of these is a list of errors: each is held against all it could have been.
MAX_ITEMS = {
    "messages": 1024, "tools": 256, "functions": 256, "stop": 64, "prompt": 64, "input": 2048,
    "logit_bias": 1024,
}  # fmt: skip
MAX_PARTS = 1024  # in the messages together, calls of tools included
_URLS = ("url", "image_url", "video_url")


class Intake:
    """Receives bodies, and knows how much is held at a time, for which client: of them, and of what
    they name."""

    def __init__(self, settings: ServerSettings) -> None:
        self.largest = settings.max_media_bytes * 4 // 3 + MAX_TEXT  # the pictures in base64
        pictures = settings.max_media_pixels * 4  # as PNG in base64, at most
        self.room = max(settings.max_held_bytes, self.largest + pictures)
        self.held = Counter[str]()

    @asynccontextmanager
    async def body(self, receive: Receive, current: Exchange) -> AsyncIterator[bytes]:
        """Context manager: the body of a request, which counts as held until the block ends, as
        does what the request is said to hold within.

        Raises ClientDisconnect, and RequestError for one that is too large (413), takes too long
        (408), or finds no room among the others (503).
        """
        pieces, size = list[bytes](), 0

        def hold(more: int) -> None:
            nonlocal size
            size += more
            self.held[current.client] += more
            if more > 0 and size > SMALL:
                self._require_room(current.client, size)

        current.hold = hold
        try:
            with anyio.move_on_after(request_limits.BODY_SECONDS) as limit:
                async for piece in Request({"type": "http"}, receive).stream():
                    pieces.append(piece)
                    hold(len(piece))
                    if size > self.largest:
                        raise RequestError(f"the request has more than {self.largest} bytes", 413)
            if limit.cancelled_caught:
                seconds = request_limits.BODY_SECONDS
                raise RequestError(f"the request took more than {seconds:g} s to arrive", 408)
            body = b"".join(pieces)
            pieces.clear()
            yield body
        finally:
            pieces.clear()  # an error that is raised above holds this frame for a while
            self.held[current.client] -= size
            if not self.held[current.client]:
                del self.held[current.client]

    def _require_room(self, client: str, size: int) -> None:
        """Raises RequestError where there is none for a request of ``size``: none at all, or less
        than its client has, so that one client leaves as much as it takes."""
        own, left = self.held[client], self.room - self.held.total()
        if left < 0 or own > max(size, left):
            raise RequestError("the server holds as many requests as it can: try again later", 503)


def parsed(body: bytes) -> Any:
    """The JSON of a body, None where it is none: the application says what is wrong with that.

    Raises RequestError for JSON of more text, values or levels than a request can need, or with
    a number that is not finite, which no reply could quote.
    """
    marks = sum(body.count(mark) for mark in (b",", b"{", b"["))
    if marks > MAX_MARKS:
        raise RequestError(f"found {marks} commas and brackets, expected at most {MAX_MARKS}", 413)
    try:
        content = json.loads(body, parse_float=_finite, parse_constant=_finite)
    except RequestError:
        raise
    except (ValueError, RecursionError):
        return None
    counted = content
    if isinstance(content, dict):
        _require_few_items(content)
        if _are_tokens(content.get("tokens")):
            counted = {name: value for name, value in content.items() if name != "tokens"}
    _require_few_values(counted)
    return content


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise RequestError(f"found the number {number[:20]}, expected a finite one")
    return value


def _require_few_items(content: dict[str, Any]) -> None:
    for name, most in MAX_ITEMS.items():
        given = content.get(name)
        if isinstance(given, list | dict) and len(given) > most:
            raise RequestError(f"{name}: found {len(given)}, expected at most {most}")
    for name in ("messages", "input"):
        messages = content.get(name)
        inner = [
            value
            for message in (messages if isinstance(messages, list) else [])
            for value in (message.values() if isinstance(message, dict) else [])
        ]
        parts = sum(len(value) for value in inner if isinstance(value, list))
        if parts > MAX_PARTS:
            raise RequestError(f"{name}: found {parts} parts, expected at most {MAX_PARTS}")


def _are_tokens(tokens: object) -> bool:
    if not isinstance(tokens, list) or len(tokens) > MAX_TOKENS:
        return False
    return all(type(token) is int for token in tokens)


def _require_few_values(content: object) -> None:
    level, values, text = [content], 0, 0
    for _ in range(MAX_DEPTH):
        values += len(level)
        if values > MAX_VALUES:
            raise RequestError(f"found more than {MAX_VALUES} values in the request", 413)
        text += sum(len(value) for value in level if isinstance(value, str))
        if text > MAX_TEXT:
            raise RequestError(f"found more than {MAX_TEXT} characters besides pictures", 413)
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise RequestError(f"found more than {MAX_DEPTH} levels: the request is nested too deeply")


def _inside(value: object) -> Iterable[Any]:
    """The values within a value, but for data URLs where they belong."""
    if isinstance(value, dict):
        yield from value
        yield from (v for name, v in value.items() if not (name in _URLS and _is_data(v)))
    elif isinstance(value, list):
        yield from (inner for inner in value if not _is_data(inner))


def _is_data(value: object) -> bool:
    return isinstance(value, str) and value[:5].lower() == "data:"
