"""The server as a process, requests to it, and its replies."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import models
import openai

from mars_gguf import demo
from mars_gguf.server.settings import Settings

ONE_THREAD = ["--n_threads", "1", "--n_threads_batch", "1"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ENDLESS = {"grammar": "root ::= [a-z ] root"}
HARMFUL = {"role": "user", "content": "How do I make a bomb?"}
# A request of the demo model that is not steered.
HARMLESS: Any = next(
    r.messages()[0] for r in demo.requests() if (r.modality, r.kind) == ("text", "harmless")
)
PICTURE = models.user("", models.picture(1))["content"][0]["image_url"]["url"]


@dataclass
class Reply:
    status: int
    content: bytes
    headers: Message

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.content)["error"]
        return error


@dataclass
class Server:
    port: int
    log: Path
    api_key: str = "none"
    pid: int = 0

    def children(self) -> list[int]:
        """Processes that it has begun."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, max_retries=0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> str:
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {self.api_key}"}
        )
        with urllib.request.urlopen(request) as reply:
            return str(reply.read().decode())

    def send(self, path: str, body: bytes, method: str = "POST", **headers: str) -> Reply:
        """Send ``body`` as it is, which the client would refuse to send."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        ours = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.api_key}",
        }
        connection.request(method, path, body, ours | headers)
        response = connection.getresponse()
        return Reply(response.status, response.read(), response.headers)

    def begin(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection on which ``head`` was sent, and some of a body."""
        connection = socket.create_connection(("127.0.0.1", self.port), 15)
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        return connection

    def extra(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """What ``/extras/name`` answers."""
        with self.client.with_options(base_url=self.url) as client:
            return client.post(f"/extras/{name}", body=body, cast_to=dict[str, Any])

    def post(
        self, body: dict[str, Any], request_id: str, window: int | None = None
    ) -> socket.socket:
        """Send a chat completion request and return at once. ``window``: bytes that may arrive
        before any are read."""
        content = json.dumps({"model": "any", **body}).encode()
        connection = socket.socket()
        if window is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nX-Request-ID: %s\r\nContent-Length: %d\r\n\r\n%s"
            % (request_id.encode(), len(content), content)
        )
        return connection

    def lines(self, wanted: str = "") -> list[str]:
        """Lines of the log about requests."""
        text = self.log.read_text()
        return [x for x in text.splitlines() if re.search(r"INFO (GET|POST) ", x) and wanted in x]

    def line(self, request_id: str) -> str:
        """The line of a request, which may come a little later than the reply."""
        for _ in range(1200):
            if lines := self.lines(f"request_id={request_id}"):
                [line] = lines
                return line
            time.sleep(0.05)
        raise AssertionError(f"no line of {request_id} in\n{self.log.read_text()}")

    def resident_bytes(self) -> float:
        found = re.search(r"^process_resident_memory_bytes (\S+)$", self.get("/metrics"), re.M)
        assert found is not None
        return float(found[1])


STALLED = 5.0  # seconds
QUICK = """
from dataclasses import replace
import sse_starlette
from mars_gguf.server.request_limits import LIMITS
sse_starlette.EventSourceResponse.DEFAULT_PING_INTERVAL = 0.2
for name, most in {}.items():
    LIMITS[name] = replace(LIMITS[name], most=most)
from mars_gguf.server.__main__ import main
main()
"""


@contextmanager
def running(
    folder: Path, *arguments: str, api_key: str = "none", **limits: float
) -> Iterator[Server]:
    """The server, on a free port, with pings every 0.2 s, little patience, and ``limits`` other
    than those of ``server.request_limits``. Settings in the environment of the tests do not
    reach it, but an address that it could not listen at, over which flags win."""
    log = folder / "server.log"
    code, address = (
        QUICK.format({"stalled_seconds": STALLED} | limits),
        ["--host", "127.0.0.1", "--port", "0"],
    )
    command = [sys.executable, "-c", code, *arguments, *address]
    known = {name.upper() for name in (*Settings.model_fields, "config_file")}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in known}
    environment |= {"HOST": "192.0.2.1", "PORT": "99999"}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        for _ in range(1200):
            started = re.search(r"Uvicorn running on https?://[\d.]+:(\d+)", log.read_text())
            if started is not None:
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        else:
            raise AssertionError(f"not started in two minutes:\n{log.read_text()}")
        yield Server(int(started[1]), log, api_key, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


def chat(server: Server, messages: Any, *, model: str = "", **options: Any) -> dict[str, Any]:
    reply: Any = server.client.chat.completions.create(
        model=model, messages=messages, **GREEDY | options
    )
    content: dict[str, Any] = reply.model_dump()
    return content | {"_request_id": reply._request_id}


def text_of(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def streamed(
    server: Server,
    messages: Any,
    stop_after: int | None = None,
    *,
    model: str = "",
    **options: Any,
) -> tuple[str, Any]:
    """Text of a streamed reply, and ``mars`` of its last chunk; abandoned after some chunks."""
    text, mars = "", None
    with server.client.chat.completions.create(
        model=model, messages=messages, stream=True, **GREEDY | options
    ) as stream:
        for n, chunk in enumerate(stream):
            if n == stop_after:
                break
            text += chunk.choices[0].delta.content or ""
            mars = chunk.model_dump().get("mars")
    return text, mars


def chat_and_line(server: Server, *args: Any, **options: Any) -> tuple[dict[str, Any], str]:
    """A reply and its line in the log."""
    reply = chat(server, *args, **options)
    return reply, server.line(reply["_request_id"])


def identified() -> dict[str, str]:
    """Headers that name a request, so that its line can be found."""
    return {"X-Request-ID": uuid.uuid4().hex}


def picture_message(url: str, role: str = "user") -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return {"role": role, "content": parts}
