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

from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_limits import exceeded, most, require, require_few
from mars_gguf.server.settings import ServerSettings

SMALL = 256 << 10  # bytes that are always taken, so that pictures do not keep questions out
_URLS = ("url", "image_url", "video_url")


class Intake:
    """Receives bodies, and knows how much is held at a time, for which client: of them, and of what
    they name."""

    def __init__(self, settings: ServerSettings) -> None:
        self.largest = settings.max_media_bytes * 4 // 3 + most("text")  # the pictures in base64
        pixels = settings.max_media_pixels * 3
        self.room = max(settings.max_held_bytes, self.largest + pixels)
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
            with anyio.move_on_after(most("body_seconds")) as time:
                async for piece in Request({"type": "http"}, receive).stream():
                    pieces.append(piece)
                    hold(len(piece))
                    require("body", size, self.largest)
            if time.cancelled_caught:
                raise exceeded("body_seconds")
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
            raise exceeded("held")


def parsed(body: bytes) -> Any:
    """The JSON of a body, None where it is none: the application says what is wrong with that.

    Raises RequestError for JSON of more text, values or levels than a request can need, or with
    a number that is not finite, which no reply could quote.
    """
    require("marks", sum(body.count(mark) for mark in (b",", b"{", b"[")))
    try:
        content = json.loads(body, parse_float=_finite, parse_constant=_finite)
    except RequestError:
        raise
    except (ValueError, RecursionError):
        return None
    counted = content
    if isinstance(content, dict):
        require_few(content)
        if _are_tokens(content.get("tokens")):
            counted = {name: value for name, value in content.items() if name != "tokens"}
    _require_few_values(counted)
    return content


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise RequestError(f"found the number {number[:20]}, expected a finite one")
    return value


def _are_tokens(tokens: object) -> bool:
    if not isinstance(tokens, list) or len(tokens) > most("tokens"):
        return False
    return all(type(token) is int for token in tokens)


def _require_few_values(content: object) -> None:
    level, values, text = [content], 0, 0
    for _ in range(most("levels")):
        require("values", values := values + len(level))
        require("text", text := text + sum(len(v) for v in level if isinstance(v, str)))
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise exceeded("levels")


def _inside(value: object) -> Iterable[Any]:
    """The values within a value, but for data URLs where they belong."""
    if isinstance(value, dict):
        yield from value
        yield from (v for name, v in value.items() if not (name in _URLS and _is_data(v)))
    elif isinstance(value, list):
        yield from (inner for inner in value if not _is_data(inner))


def _is_data(value: object) -> bool:
    return isinstance(value, str) and value[:5].lower() == "data:"
