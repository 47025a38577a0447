"""Decides who may ask, by the head of a request, before anything else of it is received."""

from __future__ import annotations

import ipaddress
from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from mars_gguf.server.errors import RequestError
from mars_gguf.server.settings import ServerSettings


class Access:
    """Knows the API key, and the names that requests may call the server by.

    A web page can have its own name resolve to 127.0.0.1, and the browser then lets it ask what
    listens there. So a server that only this machine reaches, and that asks for no key, answers to
    names of this machine alone.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.key = settings.api_key
        self.hosts = {host.lower() for host in settings.allowed_hosts}
        self.any_host = not self.hosts and (self.key is not None or not is_loopback(settings.host))

    def require(self, scope: Scope) -> None:
        """Raises RequestError for a request without the key (401), or to another name (403)."""
        headers = Headers(scope=scope)
        if self.key is not None:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = compare_digest(given.strip().encode(), self.key.encode())
            if scheme.lower() != "bearer" or not right:
                raise RequestError(
                    "found no API key or another one, expected that of --api_key", 401
                )
        host = _name(headers.get("host", ""))
        if not (self.any_host or not host or is_loopback(host) or host in self.hosts):
            raise RequestError(
                f"this server is not called {host[:100]!r}. Its operator may allow that "
                "(--allowed_hosts).",
                403,
            )


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return host


def client_of(scope: Scope) -> str:
    """The client that a request comes from, for what clients share: its address, of IPv6 the
    network, which is commonly one client's; behind a proxy that is trusted, as that says."""
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return host


def is_loopback(host: str) -> bool:
    """Tells whether ``host``, a name or an address, leads to this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
