"""Hostile requests, drawn from a seed: of every two fields of every route one with both at an
extreme or beyond, some of them left before their end, four sent at a time.

The server must never end, answer 500, or send what is no JSON or does not say that it was judged; a
reply must not outlive its client by more than it was at; memory must stay within bounds.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from attacks.fields import (
    CHAT,
    EMBEDDINGS,
    FIELDS,
    GRAMMARS,
    RAW,
    ROUTES,
    TEXT,
    TOOL,
    UNKNOWN,
    WRONG,
    asked,
    film,
    picture,
)
from servers import Server

AT_A_TIME = 4
PATIENCE = 60.0  # seconds that a client waits
# A reply that nobody waits for may go on for the token, batch or picture that is being worked on.
OUTLIVES = 2.0
LARGEST_ERROR = 2000  # bytes: an error tells what is wrong, and does not repeat the request
# Mebibytes: at most at any time over an idle server, and from a fifth of the requests to the end,
# between which what the requests of a moment hold differs by 130.
MOST_MEMORY, MOST_GROWTH = 1024, 256
# How a client takes its reply: to the end, or for so many pieces or seconds and then no more.
MANNERS = {"whole": 10, "streamed": 6, "stream left": 5, "left": 1}
LEFT, NONE = "left", "none"
STREAM = "text/event-stream"
FEW, OFTEN = 5, 20  # routes of few fields have few pairs, and each is drawn so often
WRONGLY = 0.2  # of the odd fields have a value that is none of theirs
ODDLY = 0.15  # of the chats are odd, too
_WITH: list[dict[str, Any]] = [
    {}, {}, {"response_format": {"type": "json_object"}}, {"grammar": GRAMMARS[2]},
    {"grammar": GRAMMARS[3]}, {"tools": [TOOL]}, {"temperature": 0},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    {"logprobs": True, "top_logprobs": 3},
]  # fmt: skip


# Drawing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request; the same for the same seed and number. ``pieces``: after which a stream is left;
    ``seconds``: after which a client that waits for a whole reply leaves."""

    seed: int
    number: int
    path: str
    body: dict[str, Any]
    odd: tuple[str, str]
    manner: str
    pieces: int
    seconds: float

    @property
    def id(self) -> str:
        return uuid5(NAMESPACE_URL, f"{self.seed}/{self.number}").hex

    @property
    def content(self) -> bytes:
        return json.dumps(self.body).encode()

    def __str__(self) -> str:
        return (
            f"--seed {self.seed} --only {self.number}: POST {self.path} ({self.manner}; odd: "
            f"{', '.join(self.odd)}), {len(self.content)} bytes: {self.content[:600].decode()}"
        )


def draw(seed: int, number: int) -> Request:
    """The request of that number. One after another, all pairs of fields are drawn."""
    pairs = _pairs(seed)
    path, odd = pairs[number % len(pairs)]
    rng = random.Random(f"{seed}/{number}")
    body, manner = _plain(path, rng), "whole"
    if path in (CHAT, RAW):
        manner = rng.choices(list(MANNERS), list(MANNERS.values()))[0]
        if manner.startswith("stream"):
            body["stream"] = True
    elif path == EMBEDDINGS:
        manner = rng.choice(["whole", "left"])
    for name in odd:
        wrong = rng.random() < WRONGLY or name not in FIELDS
        body[name] = rng.choice(WRONG if wrong else FIELDS[name].sent)
    if {"tool_choice", "function_call"} & {*odd}:  # alone, a choice of tools says nothing
        body.setdefault("tools", [TOOL])
        body.setdefault("functions", [TOOL["function"]])
    return Request(seed, number, path, body, odd, manner, rng.randint(1, 5), 0.3 * rng.random())


@cache
def _pairs(seed: int) -> list[tuple[str, tuple[str, str]]]:
    """Every two fields of every route, in the order in which they are drawn."""
    pairs = [
        (path, pair)
        for path, names in ROUTES.items()
        for pair in combinations([*names, UNKNOWN], 2)
        for _ in range(1 if len(names) > FEW else OFTEN)
    ]
    random.Random(seed).shuffle(pairs)
    return pairs


def _plain(path: str, rng: random.Random) -> dict[str, Any]:
    """A request of that route without anything odd."""
    if path == CHAT:
        questions = [
            [{"role": "user", "content": TEXT}],
            [{"role": "user", "content": "What is a cup?"}],
            asked(picture("small"), text=TEXT),
            asked(film("small", "small"), text="What is done here?"),
        ]
        chosen = FIELDS["messages"].sent if rng.random() < ODDLY else questions
        return {"max_tokens": 8, "messages": rng.choice(chosen)} | rng.choice(_WITH)
    if path == RAW:
        return {"prompt": TEXT, "max_tokens": 8} | rng.choice([{}, {"logprobs": 2}, {"echo": True}])
    return {"tokens": [300, 301]} if path.endswith("detokenize") else {"input": TEXT}


# Sending -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a request ended: its status, LEFT or NONE, what is wrong with that, the seconds that it
    took, and those that the reply outlived its client."""

    request: Request
    status: int | str
    problems: list[str]
    seconds: float
    outlived: float = 0.0


def attempt(server: Server, request: Request) -> Outcome:
    """Sends ``request`` and takes the reply in its manner."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    headers = {"Content-Type": "application/json", "X-Request-ID": request.id}
    with closing(connection):
        try:
            connection.request("POST", request.path, request.content, headers)
            if request.manner == "left":
                _wait(connection, request.seconds)
                connection.close()
                return left(server, request, began)
            response = connection.getresponse()
            streams = response.headers.get_content_type() == STREAM
            if request.manner == "stream left" and streams:
                events = (line for line in response if line.startswith(b"data: "))
                for _ in zip(range(request.pieces), events, strict=False):
                    pass
                connection.close()
                return left(server, request, began)
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            problem = f"no answer: {type(error).__name__}: {error}"
            return Outcome(request, NONE, [problem], time.monotonic() - began)
    problems = list(problems_of(request, response.status, dict(response.headers), content))
    return Outcome(request, response.status, problems, time.monotonic() - began)


def _wait(connection: http.client.HTTPConnection, seconds: float) -> None:
    connection.sock.settimeout(seconds)
    with suppress(TimeoutError):
        connection.sock.recv(1, socket.MSG_PEEK)


def left(server: Server, request: Request, began: float) -> Outcome:
    """What came of a request whose client has just left, by the log."""
    left_at = time.time()
    try:
        written = " ".join(server.line(request.id).split()[:2])
    except AssertionError:
        return Outcome(request, LEFT, ["its end is not in the log"], time.monotonic() - began)
    ended = datetime.strptime(written, "%Y-%m-%d %H:%M:%S,%f").timestamp()
    outlived = max(0.0, ended - left_at)
    late = [f"it went on for {outlived:.1f} s without its client"] if outlived > OUTLIVES else []
    return Outcome(request, LEFT, late, time.monotonic() - began, outlived)


def problems_of(
    request: Request, status: int, headers: dict[str, str], content: bytes
) -> Iterator[str]:
    """What is wrong with an answer."""
    headers = {name.lower(): value for name, value in headers.items()}
    if status >= 500 and status != 503:
        yield f"status {status}: {content[:300]!r}"
        return
    if status == 503 and "retry-after" not in headers:
        yield "status 503 without Retry-After"
    if status >= 400 and len(content) > LARGEST_ERROR:
        yield f"an error of {len(content)} bytes"
    try:
        if headers["content-type"].startswith(STREAM):
            yield from _problems_of_stream(request, content)
        else:
            yield from _problems_of_reply(request, status, _read(content))
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
    elif request.path == CHAT and not {"modality", "t", "alpha"} <= reply["mars"].keys():
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
    if last != "[DONE]":
        error = _read(last).get("error", {"type": "no end of the stream"})
        if error["type"] != "invalid_request_error":
            yield f"the stream ends with {last[:300]}"
    elif request.path == CHAT and not read[-1].get("mars"):
        yield "a streamed reply that does not say that it was judged"


# All of them -------------------------------------------------------------------------------------


@dataclass
class Trial:
    """What came of all requests; memory in mebibytes. ``failed``: ids that the log says 500 of,
    whether or not a client saw it. ``died_at``: what a server that ended was at."""

    outcomes: list[Outcome] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    died_at: list[Request] = field(default_factory=list)
    idle: float = 0.0
    warm: float = 0.0
    end: float = 0.0
    peak: float = 0.0

    def problems(self) -> list[str]:
        found = [f"{p}\n  {o.request}" for o in self.outcomes for p in o.problems]
        found += [f"the log says 500\n  {i}" for i in self.failed]
        if self.died_at:
            shown = "\n  ".join(map(str, self.died_at))
            found.insert(0, f"the server ended. It was at, or had just been at:\n  {shown}")
        elif self.peak - self.idle > MOST_MEMORY or self.end - self.warm > MOST_GROWTH:
            found.append("memory is beyond its bounds")
        return found

    def __str__(self) -> str:
        rows = Counter((o.request.path, str(o.status)) for o in self.outcomes)
        lines = [f"{path} {status}: {n}" for (path, status), n in sorted(rows.items())]
        outlived = max((o.outlived for o in self.outcomes), default=0)
        longest = max((o.seconds for o in self.outcomes), default=0)
        return "\n".join([
            *lines,
            f"{len(self.outcomes)} requests; problems: {len(self.problems())}. One outlived its "
            f"client by {outlived:.2f} s, the longest took {longest:.1f} s. MiB: {self.idle:.0f} "
            f"idle, {self.warm:.0f} after a fifth, {self.end:.0f} in the end, {self.peak:.0f} at "
            "most.",
        ])  # fmt: skip


def send_all(server: Server, requests: list[Request]) -> Trial:
    """Sends ``requests``, and stops when the server has ended."""
    trial = Trial(idle=_memory(server.pid))
    warm_at = len(requests) // 5

    def send(request: Request) -> Outcome | None:
        return attempt(server, request) if _memory(server.pid) else None

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for n, outcome in enumerate(pool.map(send, requests)):
            if outcome is None:
                break
            trial.outcomes.append(outcome)
            if now := _memory(server.pid):
                trial.end, trial.peak = now, _memory(server.pid, "VmHWM")
            if n == warm_at:
                trial.warm = trial.end
    last = [o.request for o in trial.outcomes if o.problems and o.status in (NONE, LEFT)]
    if last and _ends(server.pid):
        trial.died_at = last[:AT_A_TIME]
    trial.failed = re.findall(r" INFO POST \S+ 500 .*request_id=(\w+)", server.log.read_text())
    return trial


def _memory(pid: int, what: str = "VmRSS") -> float:
    """Mebibytes that a process holds, or with VmHWM that it held at most; 0 if it has ended."""
    with suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition(f"{what}:")[2].split()[0]) / 1024
    return 0.0


def _ends(pid: int, patience: float = 10.0) -> bool:
    """Tells whether it ends before ``patience`` seconds are over: llama.cpp writes a backtrace
    first, when nobody is answered any more."""
    deadline = time.monotonic() + patience
    while _memory(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not _memory(pid)
