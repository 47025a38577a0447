"""What is around every request: its id, and responses that are held back until they are sure."""

from __future__ import annotations

import uuid
from pathlib import Path

import openai
import pytest
from servers import (
    HARMFUL,
    Server,
    chat,
    chat_and_line,
)


def test_a_request_with_an_id_that_is_none_is_answered_and_logged_under_another(
    server: Server,
) -> None:
    for given in ("not-a-uuid", "-" * 9000 + "0" * 32, "{ " + "0" * 31, "urn:uuid:" + "0" * 32):
        _, line = chat_and_line(server, [HARMFUL], extra_headers={"X-Request-ID": given})
        assert "not-a-uuid" not in line and "0" * 31 not in line


def test_a_request_keeps_an_id_of_its_own(server: Server) -> None:
    for given in (uuid.uuid4().hex, str(uuid.uuid4()).upper()):
        reply = chat(server, [HARMFUL], max_tokens=1, extra_headers={"X-Request-ID": given})
        assert reply["_request_id"] == given


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
