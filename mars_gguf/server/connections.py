"""Bounds how many connections there are, how long one may wait, and how long the server ends.

Every undocumented name of uvicorn that is used is checked when this is imported."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import Counter
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mars_gguf.server.middleware import client_of
from mars_gguf.server.request_limits import most

UVICORN = "0.54.0"  # and what has the same names

# What is extended of uvicorn, and by which of its functions that is called or set.
_EXTENDED: dict[Any, tuple[str, ...]] = {
    H11Protocol.__init__: ("connections", "cycle", "loop", "transport"),
    H11Protocol.handle_events: ("cycle", "on_response_complete"),
    uvicorn.Server.handle_exit: ("should_exit",),
}

if _missing := [
    f"{function.__qualname__}.{name}"
    for function, names in _EXTENDED.items()
    for name in names
    if name not in function.__code__.co_names
]:
    raise ImportError(
        f"uvicorn {uvicorn.__version__} lacks {', '.join(_missing)}; mars-gguf works with "
        f"{UVICORN}: pip install uvicorn=={UVICORN}"
    )

SLICE = 16 << 10  # bytes of a body after which its framing is looked at
# Bytes that the system holds for a client; left alone, it would take megabytes.
UNSENT = 128 << 10
# Together they are within the 10 seconds after which Docker ends what it stops.
GRACE_SECONDS, LAST_SECONDS = 5, 3
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """A connection of uvicorn's, closed when it has no request for too long or its client does not
    read. Where there are too many, a client that has most of them makes room for a new one: by that
    which has waited longest for a whole request, else by the last one, if the new one's client has
    fewer."""

    timer: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None
    waiting_since = 0.0
    address = ""  # of its client
    payload = framing = 0  # bytes of the body that is received, and about its chunks

    @property
    def busy(self) -> bool:
        """Whether a request is being served."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def has_request(self) -> bool:
        """Whether a whole request has arrived that is being served."""
        return self.busy and not self.cycle.more_body

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNSENT)
        self.address = client_of({"client": self.client})
        self._wait()
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        if len(others) >= most("connections"):
            self._make_room(others)

    def _make_room(self, others: list[Connection]) -> None:
        have = Counter(connection.address for connection in (*others, self))
        crowd = [c for c in others if have[c.address] >= have[self.address]]
        waiting = [c for c in crowd if not c.has_request]
        largest = max(have.values())
        if waiting:
            last = min(waiting, key=lambda c: (-have[c.address], c.waiting_since))
        elif largest > have[self.address]:
            last = max(
                (c for c in crowd if have[c.address] == largest), key=lambda c: c.waiting_since
            )
        else:
            self.transport.write(FULL)
            self.transport.close()
            return
        self.connections.discard(last)
        last.transport.abort()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE):
            if self.transport.is_closing():
                return
            self._receive(data[start : start + SLICE])

    def _receive(self, data: bytes) -> None:
        cycle, busy = self.cycle, self.busy
        held = len(cycle.body) if busy else 0
        if not busy and self._refused_chunks():
            self.transport.abort()
            return
        super().data_received(data)
        if not self.busy:
            return
        self._cancel_timer()
        if self.cycle is not cycle or not busy:
            self.payload = self.framing = 0
            return
        self.payload += (grown := len(cycle.body) - held)
        self.framing += len(data) - grown
        if self.framing > most("framing") + self.payload // 16:
            self.transport.abort()

    def _refused_chunks(self) -> bool:
        """Whether what arrives are chunks of a body that was not waited for."""
        if self.cycle is None or self.conn.their_state is not h11.SEND_BODY:
            return False
        return any(name == b"transfer-encoding" for name, _ in self.headers)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.busy:  # with the next request, which had arrived before
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled = self.loop.call_later(most("stalled_seconds"), self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stalled is not None:
            self.stalled.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        if self.stalled is not None:
            self.stalled.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._cancel_timer()
        self.waiting_since = self.loop.time()
        self.timer = self.loop.call_later(most("head_seconds"), self.transport.abort)

    def _cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Server(uvicorn.Server):
    """A server of uvicorn's that ends within GRACE_SECONDS + LAST_SECONDS of a signal, whatever
    runs: nothing interrupts llama.cpp within a batch. A TLS handshake is bounded in time, too."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop: Any = asyncio.get_running_loop()
        if self.config.is_ssl:  # of which uvicorn has no setting
            seconds = most("head_seconds")
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=seconds)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            last = threading.Timer(GRACE_SECONDS + LAST_SECONDS, os._exit, (128 + sig,))
            last.daemon = True
            last.start()
        super().handle_exit(sig, frame)
