"""Requests that are refused before the model sees them."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from servers import (
    HARMFUL,
    Server,
    chat,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.: found no content"),
        ({"messages": [{"role": "user", "content": "<__media__> What?"}]}, "<__media__> in a text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice: names"),
        ({"n": 2}, "n: found 2, expected 1"),
        ({"stop": "a" * 257}, "stop: found 257 characters"),
        ({"stop": ["a", "a" * 257]}, "stop: found 257 characters"),
    ],
)
def test_a_mistake_in_a_chat_request_is_an_error_of_the_client(
    server: Server, options: dict[str, Any], message: str
) -> None:
    body = {"messages": [HARMFUL], "max_tokens": 4, **options}
    reply = server.send("/v1/chat/completions", json.dumps(body).encode())
    assert reply.status == 400
    assert re.search(message, reply.error["message"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grammar": "this is not"}, "grammar: not valid"),
        ({"grammar": 'foo ::= "a"'}, "grammar: not valid"),
        ({"grammar": 'root ::= root "a" | "a"'}, "grammar: not valid"),
        ({"grammar": "root ::= foo"}, "grammar: not valid"),
        ({"grammar": f'root ::= {"(" * 5000}"a"{")" * 5000}'}, "5000 parentheses"),
        ({"grammar": f'root ::= "{"a" * 100_000}"'}, "characters"),
        ({"logit_bias": {"abc": 1}}, "logit_bias: found the key 'abc'"),
        ({"logit_bias": {"999999999": 1}}, "logit_bias: found the key '999999999'"),
        ({"logit_bias": {"5": -1e39}}, "logit_bias: found -1e"),
        ({"repeat_penalty": 1e39}, "repeat_penalty: Input should be less"),
    ],
)
def test_what_would_end_the_process_is_an_error_of_the_client(
    server: Server, options: dict[str, Any], message: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError, match=message) as refused:
            chat(server, [HARMFUL], extra_body={**options, "stream": stream})
        assert refused.value.status_code in (400, 422)
    with pytest.raises(openai.APIStatusError, match=message):
        server.client.completions.create(model="any", prompt="Hello", extra_body=options)
    assert chat(server, [HARMFUL])["mars"]["alpha"] > 0


def test_no_request_asks_for_more_probabilities_than_the_api_gives(server: Server) -> None:
    for path, asked, most in (
        ("chat/completions", {"messages": [HARMFUL], "logprobs": True}, {"top_logprobs": 20}),
        ("completions", {"prompt": "Hello"}, {"logprobs": 5}),
    ):
        [(name, n)] = most.items()
        for stream in (False, True):
            body: dict[str, Any] = {**asked, "max_tokens": 2, "stream": stream}
            for found, status in ((n, 200), (n + 1, 400), (1 << 40, 400)):
                reply = server.send(f"/v1/{path}", json.dumps({**body, name: found}).encode())
                assert reply.status == status
        assert reply.error["message"].startswith(f"{name}: found")
