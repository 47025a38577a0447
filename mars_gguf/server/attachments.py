"""Fetches and decodes the pictures and films that requests name, within limits, and hands the model
their pixels: llama.cpp never looks at an address, a file or what a client has encoded."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from anyio import to_thread

from mars_gguf.media.picture import Picture
from mars_gguf.modalities import IMAGE, VIDEO
from mars_gguf.server.decoders import DECODERS, decode
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.fetching import FETCHES, fetch_in_thread
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_limits import exceeded, most, require
from mars_gguf.server.settings import ServerSettings
from mars_gguf.server.sharing import Line

FILM = "video_url"
MEDIA = (IMAGE.part, FILM, VIDEO.part)  # types of parts, and the key of what they hold
BASE64 = 1 << 20  # characters that are decoded at a time
# Requests whose pictures are decoded and wait for the model, each of up to 48 MiB by default: few,
# so that those of small files are not refused for want of room.
READY = Line(4)


async def decode_media(
    messages: Sequence[Any], settings: ServerSettings, current: Exchange
) -> None:
    """Replaces every picture in chat ``messages`` by its pixels, and every film by those of its
    frames.

    All of them share one limit of bytes, one of pixels and one of seconds. Raises RequestError,
    ClientGone.
    """
    parts, limits = list(media_parts(messages)), _Limits(settings, current)
    require("media", len(parts))
    files = [[await limits.read(url) for url in _urls(part, settings)] for part in parts]
    await limits.wait_until_ready()
    for part, contents in zip(parts, files, strict=True):
        kind, pictures = part["type"], list[Picture]()
        while contents:
            pictures += await limits.decode(contents.pop(0), film=kind == FILM)
        if kind == IMAGE.part:
            part[kind] = {"url": pictures[0]}
        else:
            part.pop(FILM, None)
            part |= {"type": VIDEO.part, VIDEO.part: pictures}


def media_parts(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The parts of chat messages that are pictures or films."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part["type"] in MEDIA:
                yield part


def _urls(part: dict[str, Any], settings: ServerSettings) -> list[str]:
    given = part[part["type"]]
    if part["type"] == VIDEO.part:
        require("frames", len(given), settings.max_video_frames)
        return list(given)
    return [given["url"] if isinstance(given, dict) else given]


class _Limits:
    """Keeps what is left of a request's limits, and reads and decodes its media within them."""

    def __init__(self, settings: ServerSettings, current: Exchange) -> None:
        self.settings, self.current = settings, current
        self.n_bytes, self.n_pixels = settings.max_media_bytes, settings.max_media_pixels
        self.deadline = time.monotonic() + most("media_seconds")

    async def read(self, url: str) -> bytes:
        """The file that a URL names."""
        if url[:5].lower() == "data:":
            data = await to_thread.run_sync(from_data_url, url, self.n_bytes)
        else:
            async with self._turn(FETCHES):
                seconds = self.deadline - time.monotonic()
                allow_private = self.settings.allow_private_media
                data = await fetch_in_thread(url, self.n_bytes, seconds, allow_private)
        self.n_bytes -= len(data)
        self.current.hold(len(data))
        return data

    async def wait_until_ready(self) -> None:
        """Waits until the request is among those few whose pictures may be decoded, which it is up
        to its turn."""
        began = time.monotonic()
        await self.current.until_turn.enter_async_context(READY.turn(self.current))
        self.deadline += time.monotonic() - began

    async def decode(self, data: bytes, *, film: bool) -> list[Picture]:
        """The picture in ``data``, or the frames of the film."""
        asked = {"max_pixels": self.n_pixels, "most_pixels": self.settings.max_media_pixels}
        if film:
            asked["max_frames"] = self.settings.max_video_frames
        async with self._turn(DECODERS):
            wanted = self.current.require_wanted
            pictures = await to_thread.run_sync(partial(decode, asked, self.deadline, data, wanted))
        self.n_pixels -= sum(picture.width * picture.height for picture in pictures)
        self.current.hold(sum(len(picture.rgb) for picture in pictures) - len(data))
        return pictures

    @asynccontextmanager
    async def _turn(self, line: Line) -> AsyncIterator[None]:
        """Context manager: within it, it is this client's turn; the time until then does not
        count."""
        began = time.monotonic()
        async with line.turn(self.current):
            self.deadline += time.monotonic() - began
            yield


def from_data_url(url: str, max_bytes: int) -> bytes:
    """Decodes a base64 data URL. Raises RequestError."""
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise RequestError("a data URL: expected data:image/...;base64,... or data:video/...")
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise exceeded("media_bytes", max_bytes)
    try:
        # In pieces: within one call nothing else runs.
        pieces = (payload[at : at + BASE64] for at in range(0, len(payload), BASE64))
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"a data URL is not base64: {error}") from error
