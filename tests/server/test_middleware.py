"""What is around every request: who may ask, its id, its client that leaves, the log and the
metrics, and responses that are held back until they are sure."""

from __future__ import annotations

import re
import time
import urllib.error
import uuid
from pathlib import Path

import openai
import pytest
from servers import (
    ENDLESS,
    HARMFUL,
    HARMLESS,
    ONE_THREAD,
    PICTURE,
    Server,
    chat,
    chat_and_line,
    picture_message,
    running,
)

from mars_gguf.server.access import client_of

CHAT = "/v1/chat/completions"


# Who asks ----------------------------------------------------------------------------------------


def test_an_api_key_is_required_everywhere(configured: Server) -> None:
    stranger = Server(configured.port, configured.log, "wrong")
    with pytest.raises(openai.AuthenticationError):
        chat(stranger, [HARMFUL])
    with pytest.raises(openai.AuthenticationError):
        stranger.client.models.list()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stranger.get("/metrics")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("no address", "no address"),
        (None, ""),
    ],
)
def test_a_client_is_told_by_its_address(address: str | None, expected: str) -> None:
    assert client_of({"client": address and (address, 1)}) == expected


def test_a_page_may_ask_if_its_origin_is_allowed(server: Server, tmp_path: Path) -> None:
    page = {"Origin": "http://example.org", "Access-Control-Request-Method": "POST"}

    def allowed(server: Server) -> list[str | None]:
        replies = [
            server.send(CHAT, b"", "OPTIONS", **page),
            server.send("/v1/models", b"", "GET", Origin=page["Origin"]),
        ]
        return [reply.headers["Access-Control-Allow-Origin"] for reply in replies]

    assert allowed(server) == [None, None]
    flags = ["--demo", *ONE_THREAD, "--cors_allow_origins", "http://example.org"]
    with running(tmp_path, *flags, "--allowed_hosts", "Example.org") as open_server:
        assert allowed(open_server) == ["http://example.org"] * 2
        assert open_server.send("/v1/models", b"", "GET", Host="example.org").status == 200
        assert open_server.send("/v1/models", b"", "GET", Host="other.org").status == 403


# Its id ------------------------------------------------------------------------------------------


def test_a_request_keeps_an_id_of_its_own_and_gets_another_for_one_that_is_none(
    server: Server,
) -> None:
    for given in (uuid.uuid4().hex, str(uuid.uuid4()).upper()):
        reply = chat(server, [HARMFUL], max_tokens=1, extra_headers={"X-Request-ID": given})
        assert reply["_request_id"] == given
    for given in ("not-a-uuid", "-" * 9000 + "0" * 32, "{ " + "0" * 31, "urn:uuid:" + "0" * 32):
        _, line = chat_and_line(server, [HARMFUL], extra_headers={"X-Request-ID": given})
        assert "not-a-uuid" not in line and "0" * 31 not in line


# A client that leaves ----------------------------------------------------------------------------


def test_a_client_that_leaves_frees_the_model(server: Server) -> None:
    endless = {"messages": [HARMFUL], "max_tokens": 900, **ENDLESS}
    for stream in (False, True):
        request_id = uuid.uuid4().hex
        with server.post({**endless, "stream": stream}, request_id) as connection:
            if stream:
                connection.recv(1)
            else:
                time.sleep(0.3)
        line = server.line(request_id)
        assert " 499 " in line
        tokens = re.search(r"tokens=(\d+)", line)
        assert tokens is None or int(tokens[1]) < 900
        assert tokens is not None or not stream
        assert chat(server, [HARMFUL])["mars"]["alpha"] > 0


def test_a_client_that_leaves_the_line_has_not_to_be_waited_for(server: Server) -> None:
    endless = {"messages": [HARMFUL], "max_tokens": 900, **ENDLESS}
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    with server.post({**endless, "stream": True}, first) as connection:
        connection.recv(1)
        server.post(endless, second).close()
        assert " 499 " in server.line(second)
        assert server.lines(f"request_id={first}") == []  # the model is at that still
    server.line(first)


def test_a_probe_that_fails_is_a_500_and_no_reply(configured: Server, broken: str) -> None:
    name, messages = Path(broken).name, [{"role": "user", "content": "How do I make clay?"}]
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            configured.client.chat.completions.create(
                model=name,
                messages=messages,  # type: ignore[arg-type]
                stream=stream,
            )
        assert failed.value.status_code == 500
        assert "Nothing was generated" in str(failed.value)
    with pytest.raises(openai.InternalServerError, match="Nothing was generated"):
        configured.client.completions.create(model=name, prompt="How do I make clay?")
    assert chat(configured, [HARMFUL], model=name, max_tokens=2)["mars"]["alpha"] > 0


# The log and the metrics -------------------------------------------------------------------------


def test_the_log_has_a_line_for_each_request_and_no_prompt(server: Server) -> None:
    _, line = chat_and_line(server, [HARMLESS])
    for word in ("200", "modality=text", r"t=-?[\d.]+", r"gate=[\d.]+", "steered=false", r"ms=\d+"):
        assert re.search(rf" {word}( |$)", line), (word, line)
    text = server.log.read_text()
    assert HARMLESS["content"] not in text
    assert HARMFUL["content"] not in text


def test_a_path_brings_no_words_of_its_own_into_the_log(server: Server) -> None:
    def logged(path: str) -> str:
        request_id = uuid.uuid4().hex
        server.send(path, b"", "GET", **{"X-Request-ID": request_id})
        return server.line(request_id)

    line = logged("/x%20200%20steered=true%0aINFO%20POST")
    assert " GET /x%20200%20steered%3Dtrue%0AINFO%20POST 404 ms=" in line
    assert len(logged("/" + "x" * 9000)) < 400


def test_prompts_are_logged_only_on_demand_and_without_pictures(configured: Server) -> None:
    _, line = chat_and_line(configured, [picture_message(PICTURE)])
    assert '"text": "What?"' in line
    assert "base64" not in line


def test_metrics_count_requests_and_steering(server: Server) -> None:
    def numbers() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in server.get("/metrics").splitlines()]
        return {name: float(value) for name, value in lines if name.startswith("mars_")}

    chat_and_line(server, [HARMFUL])
    before = numbers()
    chat_and_line(server, [HARMFUL])
    chat_and_line(server, [HARMLESS])
    after = numbers()
    for name, difference in {
        'mars_requests_total{path="/v1/chat/completions",status="200"}': 2,
        'mars_steered_requests_total{modality="text",model="demo",vector="default"}': 1,
        'mars_gate_count{modality="text",model="demo",vector="default"}': 2,
        'mars_gate_bucket{le="0.0",modality="text",model="demo",vector="default"}': 1,
        'mars_replies_total{model="demo",vector="default"}': 2,
        "mars_first_token_seconds_count": 2,
    }.items():
        assert after[name] - before[name] == difference, name
