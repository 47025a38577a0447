"""What requests may hold, held against llama-cpp-python's requests, ours, and the page."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from llama_cpp.server import types
from pages import ROOT
from servers import HARMFUL, HARMLESS, Server

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
        if "taken" in row:
            assert f"| {names} | {routes} | {row['taken']} |" in lines
        else:
            assert all(f"`{name}`" in section for name in row["names"])
    assert sum(line.startswith("| `") for line in lines) == sum("taken" in row for row in FIELDS)
