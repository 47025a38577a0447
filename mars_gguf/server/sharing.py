"""Decides who is next of the requests that wait: the client that has had least, not the one that
asks most often or wants most."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import ClientGone
from mars_gguf.server.request_limits import exceeded

AWAY = 1.0  # seconds after which a client has been away


class Line:
    """Requests that wait for one thing, such as the model, which ``places`` of them have at a time.

    It is shared as if all clients that want it had it at once, in even parts (weighted fair
    queueing): next is the client that has had it for the shortest time, its requests in their
    order. Who comes has had as much as one who wanted it all the while; who comes again at once has
    not been away.
    """

    def __init__(self, places: int = 1) -> None:
        self.free = places
        self._having: list[str] = []
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._had: dict[str, float] = {}  # seconds, by client
        self._share = 0.0  # seconds of one who wanted it all the while
        self._left: dict[str, float] = {}  # when clients had no request here any more

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def others_wait(self, client: str) -> bool:
        """Whether a request of another client waits."""
        return len(self._waiting) > (client in self._waiting)

    @asynccontextmanager
    async def turn(self, current: Exchange, most: float = math.inf) -> AsyncIterator[None]:
        """Context manager: within it, a request has what it has waited for.

        Where ``most`` wait already, the last of the client with the most of them goes. Raises
        RequestError (503) if that is this one, now or later, ClientGone if nobody waits for its
        reply any more.
        """
        await self._wait(current, most)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._leave(current.client, time.perf_counter() - began)

    async def _wait(self, current: Exchange, most: float) -> None:
        client = current.client
        if self._left.pop(client, -math.inf) < time.perf_counter() - AWAY and not self._has(client):
            self._had[client] = max(self._had.get(client, 0.0), self._share)
        if self.free:  # nobody waits then
            self.free -= 1
            self._having.append(client)
            return
        if len(self) >= most:
            self._make_room(client)
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(place)
        gone = asyncio.create_task(current.client_gone.wait())
        gone.add_done_callback(
            lambda _: None if place.done() else place.set_exception(ClientGone())
        )
        try:
            await place
        except BaseException:
            if not place.cancelled() and place.exception() is None:  # its turn had come
                self._leave(client, 0.0)
            elif client in self._waiting and place in self._waiting[client]:
                self._waiting[client].remove(place)
                self._forget_empty(client)
            raise
        finally:
            gone.cancel()

    def _make_room(self, client: str) -> None:
        crowd = max(self._waiting.values(), key=len, default=deque())
        if len(crowd) <= len(self._waiting.get(client, ())) + 1:
            raise exceeded("waiting")
        last = crowd.pop()
        if not last.done():
            last.set_exception(exceeded("waiting"))

    def _leave(self, client: str, seconds: float) -> None:
        self._share += seconds / len({*self._having, *self._waiting})
        self._had[client] += seconds
        self._having.remove(client)
        self.free += 1
        while self._waiting and self.free:
            following = min(self._waiting, key=self._had.__getitem__)
            place = self._waiting[following].popleft()
            self._forget_empty(following)
            if not place.done():  # its client may have left
                self.free -= 1
                self._having.append(following)
                place.set_result(None)
        now = time.perf_counter()
        if not self._has(client):
            self._left[client] = now
        self._left = {c: left for c, left in self._left.items() if left >= now - AWAY}
        self._had = {
            c: had
            for c, had in self._had.items()
            if had > self._share or self._has(c) or c in self._left
        }
        if not self._having:
            self._had.clear()
            self._left.clear()

    def _has(self, client: str) -> bool:
        return client in self._having or client in self._waiting

    def _forget_empty(self, client: str) -> None:
        if not self._waiting[client]:
            del self._waiting[client]
