"""Who may ask."""

from __future__ import annotations

import urllib.error
import urllib.request

import openai
import pytest
from servers import (
    HARMFUL,
    Server,
    chat,
)

from mars_gguf.server.access import client_of


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
