"""Fetches and decodes the pictures and films that requests name, within limits, and hands them to
the model as data URLs: llama.cpp never looks at an address or a file for a client."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread

from mars_gguf.media.images import data_url
from mars_gguf.modalities import IMAGE, VIDEO
from mars_gguf.server import request_limits
from mars_gguf.server.checks import RequestError
from mars_gguf.server.decoders import LINE, decode
from mars_gguf.server.exchange import exchange, hold
from mars_gguf.server.fetching import FETCHES, fetch_in_thread, too_large
from mars_gguf.server.settings import ServerSettings
from mars_gguf.server.sharing import Line

MEDIA = (IMAGE.part, "video_url", VIDEO.part)  # types of parts, and the key of what they hold
BASE64 = 1 << 20  # characters that are decoded at a time


async def inline_media(messages: Sequence[Any], settings: ServerSettings) -> None:
    """Replaces every picture in chat ``messages`` by a data URL that holds a PNG, and every film by
    such pictures of its frames.

    All of them share one limit of bytes, one of pixels and one of seconds. Raises RequestError.
    """
    parts, left = list(media_parts(messages)), _Limits(settings)
    if len(parts) > request_limits.MAX_PICTURES:
        raise RequestError(
            f"found {len(parts)} pictures and films, expected at most {request_limits.MAX_PICTURES}"
        )
    for part in parts:
        given = part[part["type"]]
        if part["type"] == IMAGE.part:
            part[IMAGE.part] = {"url": await left.picture(given)}
        elif part["type"] == VIDEO.part:
            if len(given) > settings.max_video_frames:
                raise RequestError(
                    f"a film has {len(given)} frames, expected at most {settings.max_video_frames}"
                )
            part[VIDEO.part] = [await left.picture(url) for url in given]
        else:
            del part["video_url"]
            part |= {"type": VIDEO.part, VIDEO.part: await left.film(given)}


def media_parts(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The parts of chat messages that are pictures or films."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part["type"] in MEDIA:
                yield part


class _Limits:
    """Keeps what is left of a request's limits; turns pictures and films within it to data URLs."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.n_bytes, self.n_pixels = settings.max_media_bytes, settings.max_media_pixels
        self.deadline = time.monotonic() + request_limits.MEDIA_SECONDS

    async def picture(self, given: Any) -> str:
        (url,) = await self._urls(await self._read(given))
        return url

    async def film(self, given: Any) -> list[str]:
        most = self.settings.max_video_frames
        return await self._urls(await self._read(given), max_frames=most)

    async def _read(self, given: Any) -> bytes:
        url = given["url"] if isinstance(given, dict) else given
        if url[:5].lower() == "data:":
            data = await to_thread.run_sync(from_data_url, url, self.n_bytes)
        else:
            async with self._turn(FETCHES):
                seconds = self.deadline - time.monotonic()
                allow_private = self.settings.allow_private_media
                data = await fetch_in_thread(url, self.n_bytes, seconds, allow_private)
        self.n_bytes -= len(data)
        hold(len(data))
        return data

    async def _urls(self, data: bytes, **asked: int) -> list[str]:
        """Data URLs of what is in ``data``. All in one turn: pictures take much memory between."""
        asked |= {"max_pixels": self.n_pixels, "most_pixels": self.settings.max_media_pixels}
        async with self._turn(LINE):
            urls, n_pixels = await to_thread.run_sync(_decoded, asked, self.deadline, data)
        self.n_pixels -= n_pixels
        hold(sum(map(len, urls)) - len(data))
        return urls

    @asynccontextmanager
    async def _turn(self, line: Line) -> AsyncIterator[None]:
        """Context manager: within it, it is this client's turn; the time until then does not
        count."""
        current, began = exchange.get(), time.monotonic()
        async with line.turn(current.client if current else ""):
            self.deadline += time.monotonic() - began
            yield


def _decoded(asked: dict[str, int], deadline: float, data: bytes) -> tuple[list[str], int]:
    """Data URLs of a picture or of a film's frames, and how many pixels they have."""
    pictures = decode(asked, deadline, data)
    return [*map(data_url, pictures)], sum(p.width * p.height for p in pictures)


def from_data_url(url: str, max_bytes: int) -> bytes:
    """Decodes a base64 data URL. Raises RequestError."""
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise RequestError("a data URL: expected data:image/...;base64,... or data:video/...")
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise too_large(max_bytes)
    try:
        # In pieces: within one call nothing else runs.
        pieces = (payload[at : at + BASE64] for at in range(0, len(payload), BASE64))
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"a data URL is not base64: {error}") from error
