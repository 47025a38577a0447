"""Sends a hostile request to a server, and says what is wrong with what comes of it."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from lab.hostile.drawing import CHAT, EMBEDDINGS, RESPONSES, Request
from lab.hostile.serving import Served

PATIENCE = 60.0  # seconds that a client waits
# A reply that nobody waits for may go on for the token, batch or picture that is being worked on.
OUTLIVES = 2.0
LARGEST_ERROR = 2000  # bytes: an error tells what is wrong, and does not repeat the request
LEFT = "left"


@dataclass(frozen=True)
class Outcome:
    """How a request ended: its status or LEFT, what is wrong with that, and seconds that the reply
    outlived its client."""

    request: Request
    status: int | str
    problems: list[str]
    seconds: float
    outlived: float = 0.0


def attempt(served: Served, request: Request) -> Outcome:
    """Sends ``request`` and takes the reply in its manner."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json", "X-Request-ID": request.id}
    with closing(connection):
        try:
            connection.request("POST", request.path, request.content, headers)
            if request.manner == "left":
                _wait(connection, request.seconds)
                return _left(served, request, connection, began)
            response = connection.getresponse()
            streams = response.headers.get_content_type() == "text/event-stream"
            if request.manner == "stream left" and streams:
                for _ in zip(range(request.pieces), _events(response), strict=False):
                    pass
                return _left(served, request, connection, began)
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            problem = f"no answer: {type(error).__name__}: {error}"
            return Outcome(request, "none", [problem], time.monotonic() - began)
    problems = list(_problems(request, response, content, streams=streams))
    return Outcome(request, response.status, problems, time.monotonic() - began)


def _wait(connection: http.client.HTTPConnection, seconds: float) -> None:
    assert connection.sock is not None
    connection.sock.settimeout(seconds)
    with suppress(TimeoutError):
        connection.sock.recv(1, socket.MSG_PEEK)


def _left(
    served: Served, request: Request, connection: http.client.HTTPConnection, began: float
) -> Outcome:
    connection.close()
    left = time.time()
    end = served.end_of(request.id)
    seconds = time.monotonic() - began
    if end is None:
        return Outcome(request, LEFT, ["its end is not in the log"], seconds)
    outlived = max(0.0, end - left)
    late = [f"it went on for {outlived:.1f} s without its client"] if outlived > OUTLIVES else []
    return Outcome(request, LEFT, late, seconds, outlived)


def _events(response: http.client.HTTPResponse) -> Iterator[str]:
    """What the events of a stream hold."""
    for line in response:
        if line.startswith(b"data: "):
            yield line[6:].decode().rstrip("\n")


def _problems(
    request: Request, response: http.client.HTTPResponse, content: bytes, *, streams: bool
) -> Iterator[str]:
    if response.status >= 500 and response.status != 503:
        yield f"status {response.status}: {content[:300]!r}"
        return
    if response.status == 503 and not response.headers.get("Retry-After"):
        yield "status 503 without Retry-After"
    if response.status >= 400 and len(content) > LARGEST_ERROR:
        yield f"an error of {len(content)} bytes"
    try:
        if streams:
            yield from _problems_of_stream(request, content)
        else:
            yield from _problems_of_reply(request, response.status, _read(content))
    except ValueError as error:  # JSON as the standard has it
        yield f"no JSON: {error}: {content[:300]!r}"


def _read(content: bytes | str) -> Any:
    return json.loads(content, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _problems_of_reply(request: Request, status: int, reply: Any) -> Iterator[str]:
    if status >= 400:
        if not isinstance(reply["error"]["message"], str):
            yield "an error without a message"
    elif (
        request.path in (CHAT, RESPONSES) and not {"modality", "t", "alpha"} <= reply["mars"].keys()
    ):
        yield "a reply that does not say that it was judged"
    elif request.path == EMBEDDINGS and not all(row["embedding"] for row in reply["data"]):
        yield "an embedding of nothing"


def _problems_of_stream(request: Request, content: bytes) -> Iterator[str]:
    lines = content.decode().split("\n")
    events = [line[6:] for line in lines if line.startswith("data: ")]
    if not events:
        yield "a stream of nothing"
        return
    *chunks, last = events
    read = [_read(chunk) for chunk in chunks]
    if request.path == RESPONSES and (told := _read(last))["type"].startswith("response."):
        if not (told["response"]["usage"] and told["response"]["mars"]):
            yield "a streamed response that does not say that it was judged"
    elif last != "[DONE]":
        error = _read(last).get("error", {"type": "no end of the stream"})
        if error["type"] != "invalid_request_error":
            yield f"the stream ends with {last[:300]}"
    elif request.path == CHAT and not read[-1].get("mars"):
        yield "a streamed reply that does not say that it was judged"
