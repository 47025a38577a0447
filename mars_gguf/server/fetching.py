"""Fetches what a client names by an address: within limits, and only from the public internet."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import anyio
from anyio import to_thread

from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_limits import exceeded
from mars_gguf.server.sharing import Line

MAX_REDIRECTS = 3
AT_A_TIME = 8
FETCHES = Line(AT_A_TIME)
_THREADS = anyio.CapacityLimiter(AT_A_TIME)
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


async def fetch_in_thread(url: str, max_bytes: int, seconds: float, allow_private: bool) -> bytes:
    """As `fetch`, while others are served."""
    # The name resolver knows no timeout: leave its thread behind rather than wait.
    with anyio.move_on_after(seconds):
        return await to_thread.run_sync(
            fetch, url, max_bytes, seconds, allow_private, abandon_on_cancel=True, limiter=_THREADS
        )
    raise exceeded("media_seconds", what="fetch")


def fetch(url: str, max_bytes: int, seconds: float, allow_private: bool = False) -> bytes:
    """GETs an http(s) URL: at most ``max_bytes``, within ``seconds``, through at most
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
    """GETs the body, or the address that it redirects to."""
    host, tls = parts.hostname.encode("idna").decode(), parts.scheme.lower() == "https"
    port = parts.port or (443 if tls else 80)
    connected = _connect(_resolve(host, port, allow_private), port, deadline)

    def abort() -> None:
        with suppress(OSError):
            # Not SSLSocket.shutdown, which takes the reader's TLS state away under it.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    # A server may send a byte now and then, which no timeout of a socket notices.
    watchdog = threading.Timer(_until(deadline), abort)
    watchdog.daemon = True
    watchdog.start()
    connection = http.client.HTTPConnection(host, port)
    try:
        if tls:
            connected = ssl.create_default_context().wrap_socket(
                connected, server_hostname=host, do_handshake_on_connect=False
            )
            connected.do_handshake()
        connection.sock = connected
        response = _request(connection, parts, f"[{host}]" if ":" in host else host)
        if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
            return str(response.getheader("Location"))
        if response.status != 200:
            raise RequestError(f"the host {host} answered {response.status}, expected 200")
        body = response.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise exceeded("media_bytes", max_bytes)
        if time.monotonic() >= deadline:  # cut off by the watchdog
            raise TimeoutError
        return body
    finally:
        watchdog.cancel()
        connection.close()
        connected.close()


def _connect(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Connects to the first of ``addresses`` that answers. Raises OSError."""
    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((address, port), _until(deadline))
    return socket.create_connection((addresses[-1], port), _until(deadline))


def _until(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _request(
    connection: http.client.HTTPConnection, parts: Any, host: str
) -> http.client.HTTPResponse:
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    headers = {
        "Host": host if parts.port is None else f"{host}:{parts.port}",
        "User-Agent": "mars-gguf",
        "Accept": "image/*, video/*",
        "Accept-Encoding": "identity",
    }
    connection.request("GET", path + query, headers=headers)
    return connection.getresponse()


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
    """Tells whether an IP address is one of the public internet; one of IPv6 that carries one of
    IPv4 as that does."""
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
