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


def test_an_api_key_is_required_everywhere(configured: Server) -> None:
    stranger = Server(configured.port, configured.log, "wrong")
    with pytest.raises(openai.AuthenticationError):
        chat(stranger, [HARMFUL])
    with pytest.raises(openai.AuthenticationError):
        stranger.client.models.list()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stranger.get("/metrics")
