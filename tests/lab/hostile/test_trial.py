"""What is found wrong with answers; the server is one that answers as the test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from lab.hostile.drawing import CHAT, Request
from lab.hostile.trial import LEFT, attempt

MARS = {"modality": "text", "t": 0.1, "alpha": 0.0}
FINE = json.dumps({"choices": [], "mars": MARS})
CHUNK = json.dumps({"choices": [], "mars": MARS})
FAILED = '{"error": {"type": "internal_server_error"}}'


class Answering(BaseHTTPRequestHandler):
    answer: tuple[int, str, str, dict[str, str]] | None = None

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.answer is None:
            return
        status, kind, content, headers = self.answer
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield SimpleNamespace(port=http.server_port, end_of=lambda _: time.time())
    http.shutdown()
    http.server_close()


def asked(manner: str = "whole") -> Request:
    return Request(0, 0, CHAT, {"messages": []}, ("a", "b"), manner, 1, 0.1)


def sse(*events: str) -> str:
    return "".join(f"data: {event}\n\n" for event in events)


STREAM, JSON = "text/event-stream", "application/json"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((200, JSON, FINE, {}), None),
        ((400, JSON, '{"error": {"message": "x"}}', {}), None),
        ((503, JSON, '{"error": {"message": "x"}}', {"Retry-After": "5"}), None),
        ((200, STREAM, sse(CHUNK, "[DONE]"), {}), None),
        ((500, JSON, '{"error": {"message": "x"}}', {}), "status 500"),
        ((503, JSON, '{"error": {"message": "x"}}', {}), "without Retry-After"),
        ((200, JSON, '{"mars": {"modality": "text", "t": NaN, "alpha": 0}}', {}), "NaN is no JSON"),
        ((200, JSON, '{"choices": [], "mars": {}}', {}), "does not say that it was judged"),
        ((400, JSON, json.dumps({"error": {"message": "x" * 9000}}), {}), "an error of 9"),
        ((400, JSON, '{"error": {"message": null}}', {}), "without a message"),
        ((200, STREAM, sse(CHUNK), {}), "the stream ends with"),
        ((200, STREAM, sse('{"choices": []}', "[DONE]"), {}), "does not say that it was judged"),
        ((200, STREAM, "", {}), "a stream of nothing"),
        ((200, STREAM, sse(CHUNK, FAILED), {}), "ends with"),
        (None, "no answer"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_with_an_answer_is_found(
    server: Any, monkeypatch: pytest.MonkeyPatch, answer: Any, found: str | None
) -> None:
    monkeypatch.setattr(Answering, "answer", answer)
    problems = attempt(server, asked()).problems
    assert problems == [] if found is None else found in " ".join(problems)


def test_a_reply_that_goes_on_without_its_client_is_found(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "answer", (200, STREAM, sse(CHUNK, CHUNK, "[DONE]"), {}))
    assert attempt(server, asked("stream left")).problems == []
    for end, found in ((lambda _: time.time() + 9, "went on for 9"), (lambda _: None, "its end")):
        server.end_of = end
        for manner in ("stream left", "left"):
            outcome = attempt(server, asked(manner))
            assert outcome.status == LEFT and found in outcome.problems[0]
