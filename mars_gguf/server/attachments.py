"""Fetches and decodes the pictures and films that requests name, within limits, and hands them to
the model as data URLs: llama.cpp never looks at an address or a file for a client."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from PIL import Image

from mars_gguf.media.images import data_url
from mars_gguf.modalities import IMAGE, VIDEO
from mars_gguf.server.checks import RequestError
from mars_gguf.server.decoders import LINE, decode
from mars_gguf.server.exchange import exchange
from mars_gguf.server.fetching import fetch_in_thread, too_large
from mars_gguf.server.settings import ServerSettings

T = TypeVar("T")
MEDIA = (IMAGE.part, "video_url", VIDEO.part)  # types of parts, and the key of what they hold
BASE64 = 1 << 20  # characters that are decoded at a time


async def inline_media(messages: Sequence[Any], settings: ServerSettings) -> None:
    """Replaces every picture in chat ``messages`` by a data URL that holds a PNG, and every film by
    such pictures of its frames.

    All of them share one limit of bytes, one of pixels and one of seconds. Raises RequestError.
    """
    parts, limits = list(media_parts(messages)), _Limits(settings)
    if len(parts) > settings.max_pictures:
        raise RequestError(
            f"found {len(parts)} pictures and films, expected at most {settings.max_pictures}"
        )
    for part in parts:
        given = part[part["type"]]
        if part["type"] == IMAGE.part:
            part[IMAGE.part] = {"url": await limits.picture(given)}
        elif part["type"] == VIDEO.part:
            if len(given) > settings.max_video_frames:
                raise RequestError(
                    f"a film has {len(given)} frames, expected at most {settings.max_video_frames}"
                )
            part[VIDEO.part] = [await limits.picture(url) for url in given]
        else:
            del part["video_url"]
            part |= {"type": VIDEO.part, VIDEO.part: await limits.film(given)}


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
        self.deadline = time.monotonic() + settings.media_timeout

    async def picture(self, given: Any) -> str:
        (found,) = await self._decoded({}, await self._read(given))
        return await self._url(found)

    async def film(self, given: Any) -> list[str]:
        data = await self._read(given)
        with TemporaryDirectory() as folder:
            path = anyio.Path(folder, "film")
            await path.write_bytes(data)
            film = {"film": str(path), "max_frames": self.settings.max_video_frames}
            frames = await self._decoded(film)
        return [await self._url(frame) for frame in frames]

    async def _decoded(self, asked: dict[str, Any], data: bytes = b"") -> list[Image.Image]:
        limits = {"max_pixels": self.n_pixels, "most_pixels": self.settings.max_media_pixels}
        return await self._in_turn(lambda: decode(asked | limits, self.deadline, data))

    async def _read(self, given: Any) -> bytes:
        url = given["url"] if isinstance(given, dict) else given
        if url[:5].lower() == "data:":
            data = await to_thread.run_sync(from_data_url, url, self.n_bytes)
        else:
            seconds = self.deadline - time.monotonic()
            allow_private = self.settings.allow_private_media
            data = await fetch_in_thread(url, self.n_bytes, seconds, allow_private)
        self.n_bytes -= len(data)
        return data

    async def _url(self, picture: Image.Image) -> str:
        self.n_pixels -= picture.width * picture.height
        return await self._in_turn(lambda: data_url(picture))

    async def _in_turn(self, call: Callable[[], T]) -> T:
        """Runs ``call`` in a thread when it is this client's turn; the time until then does not
        count."""
        current, began = exchange.get(), time.monotonic()
        async with LINE.turn(current.client if current else ""):
            self.deadline += time.monotonic() - began
            return await to_thread.run_sync(call)


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
