"""Stands around every request: who asks, the body within limits, errors, a line in the log."""

from __future__ import annotations

import asyncio
import re

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mars_gguf.server.access import Access, client_of
from mars_gguf.server.bodies import SMALL, Intake, parsed
from mars_gguf.server.errors import describe, error_response
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.metrics import count_and_log
from mars_gguf.server.settings import ServerSettings

REQUEST_ID = "X-Request-ID"
_UUID = re.compile("[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.I)


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
