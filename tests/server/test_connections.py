"""Connections: how many, and how long one may be open without a request or a reader."""

from __future__ import annotations

import importlib
import json
import re
import socket
import ssl
import subprocess
import time
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import uvicorn
from servers import ENDLESS, HARMFUL, ONE_THREAD, STALLED, Server, chat, running

from mars_gguf.server import connections

CHAT = "/v1/chat/completions"
POST = f"POST {CHAT} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"


def test_a_body_in_tiny_chunks_is_not_listened_to(server: Server) -> None:
    head = POST + "Transfer-Encoding: chunked\n\n"
    with server.begin(head) as connection, suppress(ConnectionError):
        for _ in range(100):
            connection.sendall(b"1\r\n \r\n" * 50_000)
        raise AssertionError("all of 5 million chunks were taken")
    body = json.dumps({"messages": [HARMFUL], "max_tokens": 1}).encode()
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with server.begin(head, whole) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_connections_without_a_request_make_room_and_are_closed_in_the_end(
    tmp_path: Path,
) -> None:
    def gone(connection: socket.socket) -> bool:
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    with running(tmp_path, "--demo", *ONE_THREAD) as server, ExitStack() as stack:
        idle = [stack.enter_context(server.begin("GET / HTTP/1.1\n")) for _ in range(425)]
        assert server.get("/v1/models")
        for connection in idle:
            connection.settimeout(0.001)
        assert 160 <= sum(map(gone, idle)) <= 180
        time.sleep(11)
        assert all(map(gone, idle))


def test_a_client_that_has_most_connections_makes_room_for_others(tmp_path: Path) -> None:
    body = json.dumps({"messages": [HARMFUL], "max_tokens": 900, **ENDLESS}).encode()
    whole = (POST + f"Content-Length: {len(body)}\n\n").replace("\n", "\r\n").encode() + body
    asked = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(tmp_path, "--demo", *ONE_THREAD, waiting=300) as server:
        address = ("127.0.0.1", server.port)
        with ExitStack() as stack:

            def flood(sent: bytes) -> None:
                for _ in range(300):
                    other = socket.create_connection(address, 15, ("127.0.0.2", 0))
                    stack.enter_context(other).sendall(sent)

            first = stack.enter_context(server.begin("GET /v1/models HTTP/1.1\n"))
            flood(b"GET / HTTP/1.1\r\n")  # and no more
            first.sendall(b"Host: localhost\r\n\r\n")
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
            flood(whole)
            late = stack.enter_context(server.begin(""))
            late.sendall(asked)
            assert late.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_its_reply_keeps_nobody_waiting_and_is_given_up(
    tmp_path: Path,
) -> None:
    many = {"logprobs": True, "top_logprobs": 20}  # more than what lies between us holds
    body = {"messages": [HARMFUL], "max_tokens": 700, "stream": True, **many, **ENDLESS}
    with running(tmp_path, "--demo", *ONE_THREAD, unread=100_000) as server:
        request_id, began = uuid.uuid4().hex, time.monotonic()
        with server.post(body, request_id, window=4096) as connection:
            connection.recv(1, socket.MSG_PEEK)  # it has begun
            assert chat(server, [HARMFUL])["mars"]["alpha"] > 0
            assert time.monotonic() - began < STALLED - 1
            line = server.line(request_id)
        assert STALLED - 1 < time.monotonic() - began < 6 * STALLED
    tokens = re.search(r" 499 .*tokens=(\d+)", line)
    assert tokens is not None and int(tokens[1]) < 700


@pytest.mark.slow
def test_a_connection_that_does_not_finish_its_handshake_is_closed(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    sent = ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), sent, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    said = sent.read()
    flags = ["--demo", *ONE_THREAD, "--ssl_keyfile", key, "--ssl_certfile", certificate]
    with running(tmp_path, *flags) as server, ExitStack() as stack:
        began = time.monotonic()
        for part in (b"", said[: len(said) // 2]):
            connection = stack.enter_context(server.begin("", part))
            connection.settimeout(20)
            with suppress(ConnectionError):
                assert connection.recv(1) == b""
        assert 9 < time.monotonic() - began < 25


def test_a_version_that_lacks_a_name_is_refused_with_the_one_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(self: object, *args: object) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(uvicorn.Server, "handle_exit", other)
        with pytest.raises(
            ImportError, match="other.should_exit; mars-gguf works with .* uvicorn=="
        ):
            importlib.reload(connections)
    importlib.reload(connections)
