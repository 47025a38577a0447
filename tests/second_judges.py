"""A second judge to test with: a chat completion server on loopback."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Say = Callable[[dict[str, object]], tuple[int, bytes]]


class Server(http.server.ThreadingHTTPServer):
    """A chat completion server on loopback that answers with `say`, and keeps what it was asked."""

    say: Say
    seen: list[tuple[str, dict[str, Any], str | None]]

    def handle_error(self, request: object, client_address: object) -> None:
        """A judge that hangs up is no matter for the log."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply(200, b'{"data": [{"id": "small"}, {"id": "large"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        self.reply(*self.server.say(body))

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs within the block."""
    found = Server(("127.0.0.1", 0), Handler)
    found.seen = []
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        found.shutdown()
        thread.join()
        found.server_close()


def saying(content: object) -> Say:
    return lambda _: (200, json.dumps({"choices": [{"message": {"content": content}}]}).encode())


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"
