"""Pictures and films that requests name: fetched within limits, decoded here, and handed to the
model as data URLs, so that llama.cpp never opens an address or a file for a client."""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import anyio
from anyio import to_thread
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import data_url, decode_image
from mars_gguf.media.video import load_video
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import exchange
from mars_gguf.server.settings import ServerSettings

MAX_REDIRECTS = 3
MEDIA = ("image_url", "video_url", "video")  # types of parts, and the key of what they hold
BASE64 = 1 << 20  # characters that are decoded at a time
SMALLEST_FRAME = 28 * 28  # pixels
_FETCHES = anyio.CapacityLimiter(8)
_DECODES = anyio.CapacityLimiter(2)  # a picture takes some 100 MB while it is decoded
_NOT_PUBLIC = [
    ipaddress.ip_network(block)
    for block in (
        "168.63.129.16/32",  # Azure's own services, metadata among them, from within its machines
        "192.88.99.0/24",  # 6to4 relays
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
    )
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def inline_media(messages: Sequence[Any], settings: ServerSettings) -> None:
    """Replace every picture in chat ``messages`` by a data URL that holds a PNG, and every film by
    such pictures of its frames.

    All of a request share one limit of bytes, one of pixels and one of seconds. Raises
    RequestError.
    """
    parts, limits = list(media_parts(messages)), _Limits(settings)
    if len(parts) > settings.max_pictures:
        raise RequestError(
            f"found {len(parts)} pictures and films, expected at most {settings.max_pictures}"
        )
    for part in parts:
        given = part[part["type"]]
        if part["type"] == "image_url":
            part["image_url"] = {"url": await limits.picture(given)}
        elif part["type"] == "video":
            if len(given) > settings.max_video_frames:
                raise RequestError(
                    f"a film has {len(given)} frames, expected at most {settings.max_video_frames}"
                )
            part["video"] = [await limits.picture(url) for url in given]
        else:
            del part["video_url"]
            part |= {"type": "video", "video": await limits.film(given)}


def media_parts(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The parts of chat messages that are pictures or films."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if part["type"] in MEDIA:
                yield part


class _Limits:
    """What is left of a request's limits, and pictures and films within it, as data URLs."""

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
        async with _DECODES:
            seconds = self.deadline - time.monotonic()
            frames = await to_thread.run_sync(
                decode_film, data, self.settings, self.n_pixels, seconds
            )
        return [await self._url(frame) for frame in frames]

    async def _read(self, given: Any) -> bytes:
        url = given["url"] if isinstance(given, dict) else given
        if url[:5].lower() == "data:":
            data = await to_thread.run_sync(from_data_url, url, self.n_bytes)
        else:
            seconds = self.deadline - time.monotonic()
            allow_private = self.settings.allow_private_media
            data = await _fetch_in_thread(url, self.n_bytes, seconds, allow_private)
        self.n_bytes -= len(data)
        return data

    async def _url(self, picture: Image.Image) -> str:
        self.n_pixels -= picture.width * picture.height
        return await to_thread.run_sync(data_url, picture, limiter=_DECODES)


def from_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes that a base64 data URL holds. Raises RequestError."""
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise RequestError("a data URL: expected data:image/...;base64,... or data:video/...")
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise _too_large(max_bytes)
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
        self.deadline, self.exchange = deadline, exchange.get()

    def read(self, size: int | None = -1, /) -> bytes:
        if self.exchange is not None:
            self.exchange.require_client()
        if time.monotonic() >= self.deadline:
            raise RequestError("a picture takes too long to decode: send fewer or smaller ones")
        return super().read(size)


def decode(data: bytes, max_pixels: int, deadline: float = math.inf) -> Image.Image:
    """The picture in ``data``, upright, as RGB. Raises RequestError, before anything large is
    decoded, or after ``deadline``; ClientGone."""
    try:
        return decode_image(_Watched(data, deadline), "a picture", max_pixels)
    except RequestError:
        raise
    except MarsError as error:
        raise RequestError(str(error)) from error


def decode_film(
    data: bytes, settings: ServerSettings, max_pixels: int, seconds: float
) -> list[Image.Image]:
    """Frames of the film in ``data``, scaled down to ``max_pixels`` together. Raises
    RequestError."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film"
        path.write_bytes(data)
        try:
            frames = load_video(
                path,
                max_frames=settings.max_video_frames,
                max_pixels=settings.max_media_pixels,
                seconds=seconds,
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


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"a picture or film is too large: expected at most {max_bytes} bytes, counting those "
        "before it in the request",
        413,
    )


async def _fetch_in_thread(url: str, max_bytes: int, seconds: float, allow_private: bool) -> bytes:
    # The name resolver knows no timeout: leave its thread behind rather than wait.
    with anyio.move_on_after(seconds):
        return await to_thread.run_sync(
            fetch, url, max_bytes, seconds, allow_private, abandon_on_cancel=True, limiter=_FETCHES
        )
    raise RequestError("a picture or film took too long to fetch")


def fetch(url: str, max_bytes: int, seconds: float, allow_private: bool = False) -> bytes:
    """GET an http(s) URL: at most ``max_bytes``, within ``seconds``, through at most
    MAX_REDIRECTS redirects, and unless ``allow_private`` only from public addresses.

    Every host name is resolved once, checked, and connected to at the address that was checked.
    Proxies are not used. Raises RequestError.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        try:
            parts = urlsplit(url)
            if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
                raise RequestError(
                    f"a URL has the scheme {parts.scheme[:20]!r}, expected http, https or data, "
                    "with a host"
                )
            reply = _get(parts, max_bytes, deadline, allow_private)
        except RequestError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= deadline
            reason = "it took too long" if late else type(error).__name__
            raise RequestError(f"a picture or film could not be fetched: {reason}") from error
        if isinstance(reply, bytes):
            return reply
        url = urljoin(url, reply)
    raise RequestError(f"a URL redirects more than {MAX_REDIRECTS} times")


def _get(parts: Any, max_bytes: int, deadline: float, allow_private: bool) -> bytes | str:
    """The body, or where it redirects to."""
    host, tls = parts.hostname.encode("idna").decode(), parts.scheme.lower() == "https"
    port = parts.port or (443 if tls else 80)
    connection = _PinnedConnection(host, port, tls, _resolve(host, port, allow_private))
    connection.timeout = max(deadline - time.monotonic(), 0.001)
    # A server may send a byte now and then, which no timeout of a socket notices.
    watchdog = threading.Timer(connection.timeout, connection.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
        name = f"[{host}]" if ":" in host else host
        headers = {
            "Host": name if parts.port is None else f"{name}:{port}",
            "User-Agent": "mars-gguf",
            "Accept": "image/*, video/*",
            "Accept-Encoding": "identity",
        }
        connection.request("GET", path + query, headers=headers)
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
            return str(response.getheader("Location"))
        if response.status != 200:
            raise RequestError(f"the host {host} answered {response.status}, expected 200")
        body = response.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if time.monotonic() >= deadline:  # cut off by the watchdog
            raise TimeoutError
        return body
    finally:
        watchdog.cancel()
        connection.close()


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to given addresses, whatever its host's name resolves to by now."""

    def __init__(self, host: str, port: int, tls: bool, addresses: list[str]) -> None:
        super().__init__(host, port)
        self.tls, self.addresses = tls, addresses
        self.opened: socket.socket | None = None  # HTTPConnection forgets its own before the end

    def connect(self) -> None:
        for address in self.addresses:
            try:
                self.sock = self.opened = socket.create_connection(
                    (address, self.port), self.timeout
                )
                break
            except OSError:
                if address == self.addresses[-1]:
                    raise
        if self.tls:
            self.sock = self.opened = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def abort(self) -> None:
        if self.opened is not None:
            with suppress(OSError):
                # Not SSLSocket.shutdown, which takes the reader's TLS state away under it.
                socket.socket.shutdown(self.opened, socket.SHUT_RDWR)


def _resolve(host: str, port: int, allow_private: bool) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not allow_private and not all(map(is_public, addresses)):
        raise RequestError(
            f"the host {host} is at an address that is not public. The operator of this server "
            "may allow that (--allow-private-media).",
            403,
        )
    return addresses[:4]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, seen through the IPv6 forms that carry
    an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    refused = ip.is_multicast or ip.is_reserved or any(ip in block for block in _NOT_PUBLIC)
    return ip.is_global and not refused
