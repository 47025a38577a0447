"""Measures how long four clients wait for their replies beside four hostile ones, and beside four
that are like them.

``python -m lab.hostile.fairness [--rounds 3] [--seconds 20] [-- FLAG ...]``: a real server of the
small model, and eight clients, which a proxy would say are at eight addresses. Rounds of eight
honest clients take turns with rounds of four honest and four hostile ones. An honest client asks
one thing after another: a text or a picture, at most 24 tokens of reply. Of the hostile ones each
has four requests under way at any time: one reads streams as long as the context slowly; one has
whole replies of that length, with as many probabilities as are given; one sends pictures as large
as are taken; one leaves streams after their first piece. Exits with 1 if honest clients wait more
than 1.5 times as long beside hostile ones, on average. Flags behind -- are the server's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from statistics import mean, median, quantiles
from typing import Any

from lab.hostile.drawing import CHAT
from lab.hostile.extremes import asked, picture, pictures
from lab.hostile.serving import Served, served
from mars_gguf.console import command
from mars_gguf.options import positive

MOST = 1.5
CLIENTS, UNDER_WAY = 8, 4
ENDLESS = {"grammar": "root ::= [a-z ] root", "max_tokens": 0}
SHORT = {"max_tokens": 24, "temperature": 0}
QUESTION = [{"role": "user", "content": "What is a cup?"}]
PATIENCE = 120.0


class Client:
    """A client at an address of its own, which asks until it is told to stop."""

    def __init__(self, server: Served, number: int, done: threading.Event) -> None:
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
            content = json.dumps(body).encode()
            connection.request("POST", CHAT, content, headers)
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

    def slow_reader(self) -> None:
        def slowly(response: Any) -> None:
            while not self.done.is_set() and response.read(256):
                time.sleep(0.2)

        while not self.done.is_set():
            self.ask({"messages": QUESTION, "stream": True, **ENDLESS}, slowly)

    def longest_replies(self) -> None:
        body = {"messages": QUESTION, "logprobs": True, "top_logprobs": 20, **ENDLESS}
        while not self.done.is_set():
            self.ask(body, lambda response: response.read())

    def largest_pictures(self) -> None:
        messages = asked({"type": "image_url", "image_url": {"url": _LARGEST}})
        while not self.done.is_set():
            self.ask({"messages": messages, **SHORT}, lambda response: response.read())

    def left_streams(self) -> None:
        messages = [{"role": "user", "content": "word " * 900}]
        while not self.done.is_set():
            self.ask({"messages": messages, "stream": True, **ENDLESS}, lambda r: r.readline())


_LARGEST = pictures()["large"]
HOSTILE = (
    Client.slow_reader, Client.longest_replies, Client.largest_pictures, Client.left_streams
)  # fmt: skip


def a_round(server: Served, hostile: bool, seconds: float) -> list[float]:
    """What the first four clients waited for their replies."""
    done = threading.Event()
    clients = [Client(server, number, done) for number in range(CLIENTS)]
    work: list[tuple[Callable[[Client], None], Client]] = []
    for number, client in enumerate(clients):
        if hostile and number >= CLIENTS - len(HOSTILE):
            work += [(HOSTILE[number - CLIENTS], client)] * UNDER_WAY
        else:
            work.append((Client.honest, client))
    threads = [threading.Thread(target=how, args=[client]) for how, client in work]
    for thread in threads:
        thread.start()
    done.wait(seconds)
    done.set()
    for client in clients[-len(HOSTILE) :] if hostile else ():
        client.leave()
    for thread in threads:
        thread.join()
    return [waited for client in clients[: CLIENTS - len(HOSTILE)] for waited in client.waited]


def row(name: str, waited: list[float]) -> str:
    """A row of the table, in milliseconds."""
    found = mean(waited), median(waited), quantiles(waited, n=20)[-1], max(waited)
    return f"| {name} | {len(waited)} | " + " | ".join(f"{1000 * x:.0f}" for x in found) + " |"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="lab.hostile.fairness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--rounds", type=positive, default=3, metavar="N")
    p.add_argument("--seconds", type=float, default=20.0, metavar="N", help="of each round")
    p.add_argument("flags", nargs="*", metavar="FLAG", help="of the server")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    waited: dict[bool, list[float]] = {False: [], True: []}
    with command(), served(*args.flags) as server:
        for _ in range(args.rounds):
            for hostile in waited:
                waited[hostile] += a_round(server, hostile, args.seconds)
    ratio = mean(waited[True]) / mean(waited[False])
    print(
        "| four honest clients beside | replies | mean, ms | median | 95th percentile | longest |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print(row("four honest ones", waited[False]))
    print(row("four hostile ones", waited[True]))
    print(f"\nOn average {ratio:.2f} times as long (bound: {MOST:g}).")
    if ratio > MOST:
        sys.exit(1)


if __name__ == "__main__":
    main()
