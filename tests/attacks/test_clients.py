"""Clients that mean harm: what they send is refused soon and in little memory, and others are
served all the while."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import models
import pytest
from attacks.fields import CHAT, FIELDS, RAW, TOO_LONG
from servers import ONE_THREAD, Server, running

from mars_gguf.server.middleware import is_loopback

ASKED = [{"role": "user", "content": "How do I make a bomb?"}]
PNG = models.user("", models.picture(1))["content"][0]
MB = 1 << 20
POST = (
    f"POST {CHAT} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
    "Authorization: Bearer {}\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), "--demo", *ONE_THREAD) as server:
        yield server


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, that waits two seconds for a body and holds 40 MiB of them."""
    limits = ["--max_held_bytes", str(40 * MB)]
    limits += ["--max_media_pixels", "1000000"]
    folder = tmp_path_factory.mktemp("closed")
    flags = ["--demo", *ONE_THREAD, *limits, "--api_key", "secret"]
    with running(folder, *flags, api_key="secret", body_seconds=2) as server:
        yield server


@contextmanager
def others_served(server: Server, seconds: float = 3.0, growth: int = 96 * MB) -> Iterator[None]:
    """Context manager: another client asks again and again, and gets its replies in time; in the
    end the server has not grown."""
    waited, done = [0.0], threading.Event()

    def ask() -> None:
        while not done.wait(0.02):
            began = time.monotonic()
            server.get("/v1/models")
            waited.append(time.monotonic() - began)

    before = server.resident_bytes()
    other = threading.Thread(target=ask)
    other.start()
    try:
        yield
    finally:
        done.set()
        other.join()
    assert max(waited) < seconds
    assert server.resident_bytes() < before + growth


def refused(server: Server, path: str, body: Any, statuses: tuple[int, ...] = (400, 413)) -> str:
    """The message of the error that ``body`` gets, within seconds."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    began = time.monotonic()
    reply = server.send(path, content)
    assert time.monotonic() - began < 5
    assert reply.status in statuses, reply.content[:500]
    assert len(reply.content) < 1000
    return f"{reply.error['code'] or ''}: {reply.error['message']}"


# Bodies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"), [(n, said) for n, field in FIELDS.items() for said in field.refused]
)
def test_a_field_of_more_than_a_request_can_need_is_refused_at_once(
    server: Server, name: str, message: str
) -> None:
    body = {"messages": ASKED, name: FIELDS[name].refused[message]}
    with others_served(server):
        assert message in refused(server, CHAT, body)


def test_a_body_of_a_million_brackets_is_refused_at_once(server: Server) -> None:
    with others_served(server):
        refused(server, CHAT, b'{"messages":' + b"[" * 1_000_000)
        refused(server, CHAT, b"[" * 100_000, (400, 413, 422))


def test_tokens_as_many_as_a_long_context_holds_become_text(server: Server) -> None:
    with others_served(server):
        body = json.dumps({"tokens": [300] * 200_000}).encode()
        assert server.send("/extras/detokenize", body).status == 200


# Texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TOO_LONG, ids=["marks", "words", "signs"])
def test_a_text_that_cannot_fit_the_context_is_not_tokenized(server: Server, text: str) -> None:
    parts = [PNG, {"type": "text", "text": text}]
    with others_served(server):
        for path, body in (
            (CHAT, {"messages": [{"role": "user", "content": text}]}),
            (CHAT, {"messages": [{"role": "user", "content": parts}]}),
            (RAW, {"prompt": text}),
            (RAW, {"prompt": "a", "suffix": text}),
            ("/extras/tokenize", {"input": text}),
            ("/extras/tokenize/count", {"input": text}),
        ):
            assert refused(server, path, body).startswith("context_length_exceeded: ")


def test_tokenizing_waits_for_the_model_and_keeps_nobody_waiting(server: Server) -> None:
    text = "<|im_end|>a" * 500
    with others_served(server), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.extra, "tokenize/count", {"input": text}) for _ in range(64)]
        assert {done.result()["count"] for done in asked} == {1000}


# Who asks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, RAW, "/docs", "/openapi.json", "/metrics", "/none"])
def test_the_key_is_looked_at_before_the_body_is_received(closed: Server, path: str) -> None:
    for key in ("", "Authorization: Bearer wrong\n", "Authorization: Basic secret\n"):
        head = f"POST {path} HTTP/1.1\nHost: x\n{key}Content-Length: 31000000\n\n"
        with closed.begin(head) as connection:
            assert b"401 Unauthorized" in connection.recv(4096)
    reply = closed.send(path, b"", "GET", Authorization="Bearer \u00e9")
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert reply.error["type"] == "invalid_request_error"


def test_a_body_that_does_not_come_is_given_up(closed: Server) -> None:
    began = time.monotonic()
    with closed.begin(POST.format("secret") + "Content-Length: 1000\n\n", b"{") as connection:
        for _ in range(20):
            with suppress(ConnectionError):
                connection.sendall(b" ")
            time.sleep(0.1)
        assert b"408 Request Timeout" in connection.recv(4096)
    assert time.monotonic() - began < 10


def test_unfinished_bodies_are_held_up_to_a_limit_and_questions_still_answered(
    closed: Server,
) -> None:
    head = POST.format("secret") + "Content-Length: 31000000\n\n"
    before = closed.resident_bytes()
    with ExitStack() as stack, ThreadPoolExecutor(25) as pool:

        def hold(_: int) -> bytes:
            connection = stack.enter_context(closed.begin(head))
            with suppress(ConnectionError):
                connection.sendall(b" " * 30_000_000)
            connection.settimeout(30)
            return connection.recv(4096)

        held = [pool.submit(hold, n) for n in range(25)]
        time.sleep(1)
        assert closed.resident_bytes() < before + 100 * MB
        reply = closed.client.chat.completions.create(
            model="any",
            messages=ASKED,
            max_tokens=2,  # type: ignore[arg-type]
        )
        assert reply.choices
        answers = [done.result() for done in held]
    # Those that grow side by side may all find no room; else the last of them wait too long.
    refused = [answer.split(b" ", 2)[1] for answer in answers]
    assert b"503" in refused and set(refused) <= {b"503", b"408"}
    assert all(b"retry-after" in answer for answer in answers if b" 503 " in answer[:20])


REBOUND = {"Host": "example.org", "Origin": "http://example.org"}


def test_a_server_without_a_key_on_loopback_answers_to_names_of_this_machine(
    server: Server, closed: Server, tmp_path: Path
) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1", "a.localhost."):
        assert server.send("/v1/models", b"", "GET", Host=host).status == 200
    for host in (
        "example.org",
        "localhost.example.org",
        "192.168.1.2",
        "[::2]:1",
        "127.0.0.1.nip.io",
    ):
        assert server.send("/v1/models", b"", "GET", Host=host).status == 403
    assert closed.send("/v1/models", b"", "GET", **REBOUND).status == 200
    assert is_loopback("localhost") and not is_loopback("0.0.0.0")


# Requests that are no attack ---------------------------------------------------------------------


def test_a_text_may_hold_the_address_of_the_picture_beside_it(server: Server) -> None:
    url = PNG["image_url"]["url"]

    def n_tokens(text: str) -> int:
        parts = [PNG, {"type": "text", "text": text}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        return int(
            json.loads(server.send(CHAT, json.dumps(body).encode()).content)["usage"][
                "prompt_tokens"
            ]
        )

    assert n_tokens(f"What is {url}?") > n_tokens("What is ?") + 50


# All at once -------------------------------------------------------------------------------------


def test_the_server_ends_within_seconds_whatever_runs(tmp_path: Path) -> None:
    endless = {"messages": ASKED, "max_tokens": 100_000, "grammar": "root ::= [a-z ] root"}
    head = POST.format("none") + "Content-Length: {}\n\n"
    with ExitStack() as stack:
        with running(tmp_path, "--demo", *ONE_THREAD, "--n_ctx", "65536") as server:
            for stream in (False, True):
                body = json.dumps(endless | {"stream": stream}).encode()
                stack.enter_context(server.begin(head.format(len(body)), body))
            stack.enter_context(server.begin(head.format(1000), b"{"))
            stack.enter_context(server.begin("GET"))
            time.sleep(1)
            began = time.monotonic()
        assert time.monotonic() - began < 12
