"""How long four clients wait for their replies beside four hostile ones, and beside four that are
like them: eight clients, which a proxy would say are at eight addresses.

An honest client asks one thing after another: a text or a picture, at most 24 tokens of reply. Of
the hostile ones each has four requests under way at any time: one reads streams as long as the
context slowly; one has whole replies of that length, with as many probabilities as are given; one
sends pictures as large as are taken; one leaves streams after their first piece.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from statistics import mean, median, quantiles
from typing import Any

from attacks.fields import CHAT, asked, picture
from servers import Server

MOST = 1.5  # times as long, on average
CLIENTS, UNDER_WAY = 8, 4
ENDLESS = {"grammar": "root ::= [a-z ] root", "max_tokens": 0}
SHORT = {"max_tokens": 24, "temperature": 0}
QUESTION = [{"role": "user", "content": "What is a cup?"}]
LARGEST = asked(picture("large"))
PATIENCE = 120.0


class Client:
    """A client at an address of its own, which asks until it is told to stop."""

    def __init__(self, server: Server, number: int, done: threading.Event) -> None:
        self.server, self.done = server, done
        self.address = f"192.0.2.{number + 1}"
        self.waited: list[float] = []
        self.open: set[http.client.HTTPConnection] = set()

    def ask(self, body: dict[str, Any], read: Callable[[Any], object]) -> None:
        """Sends a request, and has ``read`` what comes of it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        headers = {"Content-Type": "application/json", "X-Forwarded-For": self.address}
        self.open.add(connection)
        with closing(connection), suppress(OSError, http.client.HTTPException, AttributeError):
            connection.request("POST", CHAT, json.dumps(body).encode(), headers)
            response = connection.getresponse()
            read(response)
        self.open.discard(connection)

    def leave(self) -> None:
        """Leaves all replies that are under way."""
        for connection in list(self.open):
            if (sock := connection.sock) is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def honest(self) -> None:
        for n in count():
            messages = asked(picture("small")) if n % 4 == 3 else QUESTION
            began = time.perf_counter()
            self.ask({"messages": messages, **SHORT}, lambda response: response.read())
            if self.done.is_set():  # and so are the others: it was not among them
                return
            self.waited.append(time.perf_counter() - began)

    def hostile(self, body: dict[str, Any], read: Callable[[Client, Any], object]) -> None:
        while not self.done.is_set():
            self.ask(body, lambda response: read(self, response))

    def slowly(self, response: Any) -> None:
        while not self.done.is_set() and response.read(256):
            time.sleep(0.2)


WHOLE: Callable[[Client, Any], object] = lambda _, response: response.read()  # noqa: E731
HOSTILE: list[tuple[dict[str, Any], Callable[[Client, Any], object]]] = [
    ({"messages": QUESTION, "stream": True, **ENDLESS}, Client.slowly),
    ({"messages": QUESTION, "logprobs": True, "top_logprobs": 20, **ENDLESS}, WHOLE),
    ({"messages": LARGEST, **SHORT}, WHOLE),
    (
        {"messages": asked(text="word " * 900), "stream": True, **ENDLESS},
        lambda _, response: response.readline(),
    ),
]


def a_round(server: Server, hostile: bool, seconds: float) -> list[float]:
    """What the first four clients waited for their replies."""
    done = threading.Event()
    clients = [Client(server, number, done) for number in range(CLIENTS)]
    honest = clients[: -len(HOSTILE)] if hostile else clients
    threads = [threading.Thread(target=client.honest) for client in honest]
    for client, how in zip(clients[len(honest) :], HOSTILE, strict=False):
        threads += [threading.Thread(target=client.hostile, args=how) for _ in range(UNDER_WAY)]
    for thread in threads:
        thread.start()
    done.wait(seconds)
    done.set()
    for client in clients[len(honest) :]:
        client.leave()
    for thread in threads:
        thread.join()
    return [waited for client in clients[: -len(HOSTILE)] for waited in client.waited]


def row(name: str, waited: list[float]) -> str:
    """A row of the table, in milliseconds: replies, mean, median, 95th percentile, longest."""
    found = mean(waited), median(waited), quantiles(waited, n=20)[-1], max(waited)
    return f"| {name} | {len(waited)} | " + " | ".join(f"{1000 * x:.0f}" for x in found) + " |"
