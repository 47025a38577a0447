"""What requests may hold."""

from __future__ import annotations

import json

from servers import HARMFUL, Server

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
