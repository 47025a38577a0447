"""Fetching: within limits, and from public addresses only."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest
from servers import (
    PICTURE,
)
from sites import pictures_served

from mars_gguf.server import fetching
from mars_gguf.server.fetching import fetch, is_public
from mars_gguf.server.http_errors import RequestError

PIXELS = base64.b64decode(PICTURE.partition(",")[2])  # the file in it


def test_fetching_follows_redirects_within_size_time_and_count() -> None:
    with pictures_served(PIXELS) as site:
        assert fetch(f"{site}/to?{site}/to?picture", 1 << 16, 30, True) == PIXELS
        for url, message in (
            (f"{site}/large", "too large"),
            (f"{site}/endless", "too long"),
            (f"{site}/to?to?to?to?to?picture", "redirects"),
            (f"{site}/to?file:///etc/passwd", "scheme 'file'"),
            (f"{site}/to?http://127.0.0.1:99999/", "could not be fetched"),
            ("http://[", "could not be fetched"),
        ):
            with pytest.raises(RequestError, match=message):
                fetch(url, 1 << 16, 0.5 if "endless" in url else 30, True)


def test_addresses_are_checked_after_resolving_at_every_hop_and_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved: list[str] = []
    answers = {"first.test": ["127.0.0.1", "127.0.0.9"], "second.test": ["127.0.0.9"]}
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host in answers:
            resolved.append(host)
            host = answers[host].pop(0)  # another answer each time
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    with pictures_served(PIXELS) as site:
        port = site.rpartition(":")[2]
        assert fetch(f"http://first.test:{port}/picture", 1 << 16, 30).startswith(b"\x89PNG")
        assert resolved == ["first.test"]
        with pytest.raises(RequestError, match="second.test is at an address that is not public"):
            fetch(f"{site}/to?http://second.test:{port}/picture", 1 << 16, 30)


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 "
    "255.255.255.255 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 "
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a00:1 2002:7f00:1:: "
    "2001:0:0:0:0:0:80ff:fffe fec0::1 192.88.99.1 3fff::1 168.63.129.16 "
    "::ffff:168.63.129.16".split(),
)
def test_private_addresses_are_not_public_in_any_notation(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)
