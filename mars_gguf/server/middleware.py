"""Stands around every request: who asks, the body within limits, errors, a line in the log."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from hmac import compare_digest
from urllib.parse import urlsplit

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mars_gguf.server.bodies import SMALL, Intake, parsed
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import RequestError, describe, error_response
from mars_gguf.server.metrics import count_and_log
from mars_gguf.server.settings import ServerSettings

REQUEST_ID = "X-Request-ID"
_UUID = re.compile("[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.I)


# Who asks ----------------------------------------------------------------------------------------


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


# What is done about a request --------------------------------------------------------------------


class ExchangeMiddleware:
    """Makes an `Exchange` of every request, as ``request.state.exchange``, and watches whether its
    client is still there. ``request.state.content`` is the JSON of its body."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.log_prompts = app, settings.log_prompts
        self.access, self.intake = Access(settings), Intake(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        current = _exchange_of(scope)
        response = _Response(current, send)
        try:
            await self._serve(scope, receive, response)
        except Exception as error:
            current.error = error
        except asyncio.CancelledError:  # the server ends
            current.client_gone.set()
            raise
        finally:
            await current.until_turn.aclose()
        if current.error is not None:
            response.status, _ = describe(current.error)  # also of what failed within a stream
            if not current.responding:
                response.held.clear()
                await error_response(current.error)(scope, receive, response)
        if current.client_gone.is_set() and not response.complete:
            response.status = 499
        count_and_log(scope, current, response.status, self.log_prompts)

    async def _serve(self, scope: Scope, receive: Receive, response: _Response) -> None:
        current = response.exchange

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            current.client_gone.set()

        self.access.require(scope)
        async with self.intake.body(receive, current) as body:
            if len(body) > SMALL:  # which takes a moment
                content = await to_thread.run_sync(parsed, body)
            else:
                content = parsed(body)
            scope.setdefault("state", {}).update(exchange=current, content=content)
            watcher = asyncio.create_task(watch())
            try:
                await self.app(scope, _replay(body, current), response)
            finally:
                watcher.cancel()
        if current.error is None:
            await response.flush()


class _Response:
    """Holds a response back until its first byte, so that a streamed reply which fails before its
    first token is a 500 and no broken 200."""

    def __init__(self, current: Exchange, send: Send) -> None:
        self.exchange, self.send = current, send
        self.held: list[Message] = []
        self.status, self.complete = 499, False

    async def __call__(self, message: Message) -> None:
        self.held.append(message)
        if self.exchange.responding or message.get("body"):
            await self.flush()

    async def flush(self) -> None:
        """Sends what is held."""
        while self.held:
            message = self.held.pop(0)
            self.exchange.responding = True
            if message["type"] == "http.response.start":
                self.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = self.exchange.request_id
            last = message["type"] == "http.response.body" and not message.get("more_body")
            self.complete = last and not self.exchange.client_gone.is_set()
            await self.send(message)


def _exchange_of(scope: Scope) -> Exchange:
    """A new exchange, under the request's own id if it brings one that is a UUID."""
    given, client = Headers(scope=scope).get(REQUEST_ID, ""), client_of(scope)
    # Not UUID(), which takes any number of braces and dashes as well.
    return Exchange(given, client) if _UUID.fullmatch(given) else Exchange(client=client)


def _replay(body: bytes, current: Exchange) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await current.client_gone.wait()
        return {"type": "http.disconnect"}

    return receive
