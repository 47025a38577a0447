"""Fetches and decodes the pictures and films that requests name, within limits, and hands them to
the model as data URLs: llama.cpp never looks at an address or a file for a client."""

from __future__ import annotations

import base64
import binascii
import io
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from anyio import to_thread
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import data_url, decode_image
from mars_gguf.media.video import load_video
from mars_gguf.modalities import IMAGE, VIDEO
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import require_wanted
from mars_gguf.server.fetching import fetch_in_thread, too_large
from mars_gguf.server.settings import ServerSettings

MEDIA = (IMAGE.part, "video_url", VIDEO.part)  # types of parts, and the key of what they hold
BASE64 = 1 << 20  # characters that are decoded at a time
SMALLEST_FRAME = 28 * 28  # pixels
_DECODES = anyio.CapacityLimiter(2)  # a picture takes some 100 MB while it is decoded


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
        data = await self._read(given)
        return await self._url(
            await to_thread.run_sync(decode, data, self.n_pixels, self.deadline, limiter=_DECODES)
        )

    async def film(self, given: Any) -> list[str]:
        data = await self._read(given)
        frames = await to_thread.run_sync(
            decode_film, data, self.settings, self.n_pixels, self.deadline, limiter=_DECODES
        )
        return [await self._url(frame) for frame in frames]

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
        return await to_thread.run_sync(data_url, picture, limiter=_DECODES)


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


class _Watched(io.BytesIO):
    """A file that cannot be read any more when it is too late, or when nobody waits for it."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self.deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        require_wanted()
        if time.monotonic() >= self.deadline:
            raise RequestError("a picture takes too long to decode: send fewer or smaller ones")
        return super().read(size)


def decode(data: bytes, max_pixels: int, deadline: float = math.inf) -> Image.Image:
    """Decodes a picture, upright, as RGB. Raises RequestError, before anything large is decoded or
    after ``deadline``, and ClientGone."""
    try:
        return decode_image(_Watched(data, deadline), "a picture", max_pixels)
    except RequestError:
        raise
    except MarsError as error:
        raise RequestError(str(error)) from error


def decode_film(
    data: bytes, settings: ServerSettings, max_pixels: int, deadline: float
) -> list[Image.Image]:
    """Decodes frames of a film, scaled down to ``max_pixels`` together. Raises RequestError."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film"
        path.write_bytes(data)
        try:
            frames = load_video(
                path,
                max_frames=settings.max_video_frames,
                max_pixels=settings.max_media_pixels,
                seconds=deadline - time.monotonic(),
            ).frames
        except MarsError as error:
            raise RequestError(str(error).replace(str(path), "a film")) from error
    share = max_pixels // len(frames)
    if share < SMALLEST_FRAME:
        raise RequestError("a film's frames have too many pixels, counting what precedes it")
    for frame in frames:
        scale = (share / (frame.width * frame.height)) ** 0.5
        if scale < 1:
            frame.thumbnail((int(frame.width * scale) or 1, int(frame.height * scale) or 1))
    return frames
