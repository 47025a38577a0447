"""Requests of the Responses API: which chat they are, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from servers import PICTURE, Server

from mars_gguf.server.response_requests import ResponseRequest, chat_request

RESPONSES = "/v1/responses"
TOOL = {"name": "weather", "description": "Of a place", "parameters": {"type": "object"}}
CALLS = [{"name": "weather", "arguments": f'{{"n": {n}}}'} for n in range(2)]


def test_a_request_becomes_the_chat_that_asks_for_the_same() -> None:
    shown = {"type": "input_image", "image_url": PICTURE, "detail": "auto"}
    said = {"type": "output_text", "text": "I look it up.", "annotations": [], "logprobs": []}
    given: dict[str, Any] = {
        "instructions": "Be kind.",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"role": "user", "content": [shown, {"type": "input_text", "text": "And here?"}]},
            {
                "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
                "content": [said, {"type": "refusal", "refusal": " No."}],
            },
            *({"type": "function_call", "call_id": f"c{n}"} | c for n, c in enumerate(CALLS)),
            {"type": "function_call_output", "call_id": "c0", "output": "rain"},
            {"type": "function_call_output", "call_id": "c1", "output": [
                {"type": "input_text", "text": "sun"}
            ]},
            {"type": "message", "role": "user", "content": "Thanks."},
        ],
        "tools": [{"type": "function", "strict": True, **TOOL}],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"const": 1}}},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "max_output_tokens": 5, "top_logprobs": 2, "temperature": 0.5, "stream": True,
        "store": False, "background": None, "reasoning": {"effort": "low"}, "metadata": {"a": "b"},
    }  # fmt: skip
    calls = [{"id": f"c{n}", "type": "function", "function": c} for n, c in enumerate(CALLS)]
    asked = chat_request(ResponseRequest.model_validate(given)).model_dump(exclude_unset=True)
    assert asked == {
        "messages": [
            {"role": "system", "content": "Be kind.\n\nBe brief."},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": PICTURE}},
                {"type": "text", "text": "And here?"},
            ]},
            {"role": "assistant", "content": "I look it up. No.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c0", "content": "rain"},
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
            {"role": "user", "content": "Thanks."},
        ],
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_object", "schema": {"const": 1}},
        "logprobs": True, "top_logprobs": 2, "max_tokens": 5, "temperature": 0.5, "stream": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({name: "resp_1"}, f"{name}: this server keeps no") for name in
            ("previous_response_id", "conversation", "prompt")),
        ({"store": True}, "store: this server keeps no"),
        ({"background": True}, "background: this server keeps no"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "names none of the tools"),
        ({"seed": 1}, "no field of response requests"),
        ({"context_management": []}, "no field of response requests"),
        ({"mars": {"vector": "default"}}, "may not control steering"),
        ({"temperature": 1e300}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"input": 1}, "input"),
        ({"input": [1]}, "input"),
        ({"input": [{"role": "user"}]}, r"input[0]: expected a message"),
        ({"input": [{"role": "tool", "content": "a"}]}, r"input[0]: expected a message"),
        ({"input": [{"type": "web_search_call"}]}, r"input[0]: expected a message"),
        ({"input": [{"type": "function_call", "call_id": 1}]}, r"input[0]: expected a message"),
        ({"input": [{"content": [{"type": "input_file"}]}]}, r"input[0]: found a part of another"),
        ({"input": [{"content": [{"type": "input_image", "file_id": "a"}]}]}, "needs image_url"),
        ({"input": [{"content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
            "URL"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": PICTURE}]
            }]}, r"input[0]: found a part of another"),
        ({"input": [{"content": []}] * 2049}, "at most 2048"),
        ({"input": [{"content": [{"type": "input_text", "text": "a"}] * 1025}]}, "1025 parts"),
    ],
    ids=lambda value: f"{value!r:.60}",
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_the_reason(
    server: Server, given: dict[str, Any], message: str
) -> None:
    for stream in (False, True):
        body = {"input": "Hello", "max_output_tokens": 1, "stream": stream, **given}
        reply = server.send(RESPONSES, json.dumps(body).encode())
        assert reply.status in (400, 403, 422), reply.content
        assert message in reply.error["message"]
