"""The application: who is let through by what is around it."""

from __future__ import annotations

from pathlib import Path

from servers import ONE_THREAD, Server, running

CHAT, RAW = "/v1/chat/completions", "/v1/completions"


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
