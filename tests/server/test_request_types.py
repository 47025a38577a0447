"""What requests may hold."""

from __future__ import annotations

import json

import pytest
from servers import HARMFUL, HARMLESS, Server

from mars_gguf.server.fields import names_of

CHAT, RAW = "/v1/chat/completions", "/v1/completions"


def test_null_stands_for_the_default_wherever_it_is_given(server: Server) -> None:
    fields = (
        "model max_tokens max_completion_tokens min_tokens temperature top_p min_p stop stream "
        "logprobs top_logprobs presence_penalty frequency_penalty logit_bias seed n user top_k "
        "repeat_penalty response_format tools tool_choice functions function_call mars echo suffix"
    )
    nulls = dict.fromkeys(fields.split())
    said = {"role": "assistant", "content": "Hello", "tool_calls": None, "function_call": None}
    for path, body in (
        (CHAT, {"messages": [HARMFUL, said | {"refusal": None}, HARMFUL], **nulls}),
        (RAW, {"prompt": "Hello", **nulls}),
    ):
        reply = server.send(path, json.dumps(body).encode())
        assert reply.status == 200, reply.content
        assert json.loads(reply.content)["choices"]


def test_a_field_that_is_not_known_is_refused(server: Server) -> None:
    for name, value in (("ignore_eos", True), ("audio", {"voice": "x"}), ("\ud800" * 90, 1)):
        for path, body in ((CHAT, {"messages": [HARMFUL]}), (RAW, {"prompt": "Hello"})):
            reply = server.send(path, json.dumps({**body, "max_tokens": 1, name: value}).encode())
            assert reply.status == 400
            assert "no field of a" in reply.error["message"]
            assert len(reply.error["message"]) < 400


@pytest.mark.parametrize("value", [1 << 70, -(1 << 70), 1e308, -1e308, 1e-308])
def test_no_number_makes_the_server_fail(server: Server, value: float) -> None:
    for name in names_of("chat", taken=True):
        body = {"messages": [HARMLESS], "max_tokens": 2, name: value}
        assert server.send(CHAT, json.dumps(body).encode()).status < 500, name
