"""What requests may hold, held against llama-cpp-python's requests, ours, and the page."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import openai
import pytest
from llama_cpp.server import types
from pages import ROOT
from servers import HARMFUL, HARMLESS, Server, chat

from mars_gguf.server import request_types
from mars_gguf.server.request_types import FIELDS, KNOWN, Route

CHAT, RAW = "/v1/chat/completions", "/v1/completions"
ROUTES = get_args(Route)
UPSTREAM: dict[Route, Any] = {
    "chat": types.CreateChatCompletionRequest,
    "completion": types.CreateCompletionRequest,
    "embedding": types.CreateEmbeddingRequest,
}
OURS: dict[Route, Any] = {
    "chat": request_types.ChatRequest,
    "completion": request_types.CompletionRequest,
    "embedding": request_types.EmbeddingRequest,
}


def without_effect(route: Route) -> set[str]:
    rows = (row for row in FIELDS if route in row["routes"] and "taken" not in row)
    return {name for row in rows for name in row["names"]}


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
        assert "choices" in json.loads(reply.content)


def test_a_field_that_is_not_known_is_refused(server: Server) -> None:
    for name, value in (("ignore_eos", True), ("audio", {"voice": "x"}), ("\ud800" * 90, 1)):
        for path, body in (
            (CHAT, {"messages": [HARMFUL]}),
            (RAW, {"prompt": "Hello"}),
        ):
            reply = server.send(path, json.dumps({**body, name: value}).encode())
            assert reply.status == 400
            assert "no field of" in reply.error["message"]
            assert len(reply.error["message"]) < 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.: found no content"),
        ({"messages": [{"role": "user", "content": "<__media__> What?"}]}, "<__media__> in a text"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice: names"),
        ({"n": 2}, "n: found 2, expected 1"),
    ],
)
def test_a_mistake_in_a_chat_request_is_an_error_of_the_client(
    server: Server, options: dict[str, Any], message: str
) -> None:
    body = {"messages": [HARMFUL], "max_tokens": 4, **options}
    reply = server.send(CHAT, json.dumps(body).encode())
    assert reply.status == 400
    assert re.search(message, reply.error["message"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grammar": "this is not"}, "grammar: not valid"),
        ({"grammar": 'root ::= root "a" | "a"'}, "grammar: not valid"),
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


@pytest.mark.parametrize("value", [1 << 70, -(1 << 70), 1e308, -1e308, 1e-308])
def test_no_number_makes_the_server_fail(server: Server, value: float) -> None:
    for name in KNOWN["chat"] - without_effect("chat"):
        body = {"messages": [HARMLESS], "max_tokens": 2, name: value}
        assert server.send(CHAT, json.dumps(body).encode()).status < 500, name


@pytest.mark.parametrize("route", [*UPSTREAM])
def test_every_field_that_llama_cpp_python_takes_is_in_the_list(route: Route) -> None:
    assert set(UPSTREAM[route].model_fields) <= KNOWN[route]


@pytest.mark.parametrize("route", ROUTES)
def test_every_field_that_is_taken_is_one_of_the_request(route: Route) -> None:
    effective = KNOWN[route] - without_effect(route)
    assert effective == set(OURS[route].model_fields) - without_effect(route)


def test_the_page_has_the_list() -> None:
    page = (ROOT / "docs" / "SERVER.md").read_text("utf-8")
    section = page.split("## Fields of requests")[1].split("\n## ")[0]
    lines = section.splitlines()
    for row in FIELDS:
        names = ", ".join(f"`{name}`" for name in row["names"])
        routes = "every" if row["routes"] == [*ROUTES] else ", ".join(row["routes"])
        routes = routes.replace("chat, completion", "")
        if "taken" in row:
            assert f"| {names} | {routes} | {row['taken']} |".replace("|  |", "| |") in lines
        else:
            assert all(f"`{name}`" in section for name in row["names"])
    assert sum(line.startswith("| `") for line in lines) == sum("taken" in row for row in FIELDS)
