"""Errors as clients see them."""

from __future__ import annotations

import json

import openai
import pytest
from servers import (
    HARMFUL,
    PICTURE,
    Server,
    chat,
    identified,
    picture_message,
)


def test_a_request_of_the_wrong_shape_is_told_where_and_not_repeated(server: Server) -> None:
    system = picture_message("data:image/png;base64," + "A" * (20 << 20), "system")
    for body in (
        json.dumps({"messages": [system, {"role": "no"}]}).encode(),
        b'{"mars": {"\\ud800": 1}}',
        b"{nope",
        b"",
    ):
        reply = server.send("/v1/chat/completions", body)
        assert reply.status == 422
        assert reply.error["type"] == "invalid_request_error"
        assert reply.error["message"].startswith("body")
        assert len(reply.content) < 1500


def test_a_prompt_larger_than_the_context_is_an_error_of_the_client(server: Server) -> None:
    for stream in (False, True):
        for message in ({**HARMFUL, "content": "word " * 3000}, picture_message(PICTURE)):
            if isinstance(message["content"], list):
                message["content"][1]["text"] = "word " * 3000
            with pytest.raises(openai.BadRequestError) as refused:
                server.client.chat.completions.create(
                    model="any",
                    messages=[message],  # type: ignore[list-item]
                    stream=stream,
                )
            assert refused.value.code == "context_length_exceeded"


def test_a_model_that_cannot_be_loaded_any_more_is_a_500_without_its_path(
    configured: Server,
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            chat(
                configured,
                [HARMFUL],
                model="gone.gguf",
                extra_body={"stream": stream},
                extra_headers=(headers := identified()),
            )
        assert failed.value.body == {
            "message": "the model could not be loaded",
            "type": "internal_server_error",
            "param": None,
            "code": None,
        }
        assert " 500 " in configured.line(headers["X-Request-ID"])
    assert str(configured.log.with_name("gone.gguf")) in configured.log.read_text()
    assert chat(configured, [HARMFUL])["mars"]["alpha"] > 0


def test_errors_of_every_kind_have_the_form_of_the_api(server: Server, configured: Server) -> None:
    for reply, status in (
        (server.send("/none", b"{}"), 404),
        (server.send("/v1/models", b"{}"), 405),
        (server.send("/v1/chat/completions", b"\xff\xfe{"), 400),
        (server.send("/v1/chat/completions", b"{nope"), 422),
        (server.send("/v1/embeddings", b'{"input": "Hello"}'), 400),
        (configured.send("/v1/chat/completions", b"{}", Authorization="Bearer wrong"), 401),
    ):
        assert reply.status == status
        assert reply.error.keys() == {"message", "type", "param", "code"}
        assert reply.error["type"] == "invalid_request_error"
