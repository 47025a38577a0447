"""What is around every request: who may ask, its id, and responses that are held back until
they are sure."""

from __future__ import annotations

import urllib.error
import uuid
from pathlib import Path

import openai
import pytest
from servers import (
    HARMFUL,
    ONE_THREAD,
    Server,
    chat,
    chat_and_line,
    running,
)

from mars_gguf.server.middleware import client_of

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
