"""Schemas: what would become a huge grammar is refused before, what people write is followed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from servers import HARMFUL, Server

from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_types import ChatRequest
from mars_gguf.server.schemas import require_schemas

CHAT, RAW = "/v1/chat/completions", "/v1/completions"

LAUGHS = {
    f"l_{n}": {"anyOf": [{"$ref": f"#/$defs/l_{n + 1}"}, {"$ref": f"#/$defs/l_{n + 1}"}]}
    for n in range(40)
} | {"l_40": {"const": "ha"}}  # fmt: skip


HUGE: dict[str, Any] = {
    "pattern": {"pattern": "^a{1000000000}$"},
    "nested pattern": {"pattern": "^" + "(" * 9 + "a" + "{1000})" * 9 + "{1000000}$"},
    "other digits": {"pattern": "^a{1_000_000_000}$"},
    "copied pattern": {"pattern": "^a" + "*" * 1_000_000 + "$"},
    "items": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "optional items": {"type": "array", "items": {"type": "string"}, "maxItems": 10**9},
    "length": {"type": "string", "minLength": 10**9},
    "long names": {"properties": {"a" * 100_000: {"type": "array", "items": {}, "minItems": 100}}},
    "optional properties": {"properties": {f"p{n}": {} for n in range(1500)}},
    "laughs": {"$defs": LAUGHS, "anyOf": [{"$ref": "#/$defs/l_0"}]},
}


def refusal(**options: Any) -> str:
    """The message of the error that a schema gets, within a moment."""
    body = ChatRequest.model_validate({"messages": [HARMFUL], **options})
    began = time.monotonic()
    with pytest.raises(RequestError, match="expected a smaller schema") as refused:
        require_schemas(body, every_tool=False)
    assert time.monotonic() - began < 1
    return str(refused.value)


@pytest.mark.parametrize("schema", HUGE.values(), ids=HUGE.keys())
def test_a_schema_that_becomes_a_huge_grammar_is_refused_before(schema: dict[str, Any]) -> None:
    schema = {"type": "string"} | schema if "pattern" in schema else schema
    within = {"type": "object", "properties": {"a": schema}, "$defs": schema.get("$defs", {})}
    tool = {"type": "function", "function": {"name": "f", "parameters": within}}
    formats = {"type": "json_object", "schema": schema}
    chosen = {"type": "function", "function": {"name": "f"}}
    assert refusal(response_format=formats).startswith("response_format.schema: found")
    for asked in (
        {"tools": [tool], "tool_choice": chosen},
        {"functions": [tool["function"]], "function_call": {"name": "f"}},
    ):
        assert refusal(**asked).startswith("parameters of the tool 'f': found")


def test_a_huge_schema_is_an_error_of_the_client(server: Server) -> None:
    formats = {"type": "json_object", "schema": {"type": "string"} | HUGE["pattern"]}
    body = {"messages": [HARMFUL], "max_tokens": 2, "response_format": formats}
    reply = server.send(CHAT, json.dumps(body).encode())
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")


def test_schemas_that_people_write_are_followed_and_those_of_other_tools_do_not_matter(
    server: Server,
) -> None:
    uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    node = {"properties": {"next": {"$ref": "#/$defs/node"}, "other": {"$ref": "#/$defs/node"}}}
    for schema in (
        {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        {"type": "string", "pattern": uuid},
        {"type": "string", "maxLength": 900},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 100},
        {"type": "object", "properties": {"n": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}},
        {"properties": {f"p{n}": {"type": "string"} for n in range(60)}},
    ):
        huge = {"type": "function", "function": {"name": "f", "parameters": HUGE["length"]}}
        formats = {"type": "json_object", "schema": schema}
        reply = server.send(
            CHAT,
            json.dumps(
                {
                    "messages": [HARMFUL],
                    "max_tokens": 8,
                    "response_format": formats,
                    "tools": [huge],
                }
            ).encode(),
        )
        assert reply.status == 200, reply.content
        assert json.loads(reply.content)["choices"][0]["message"]["content"][0] in '"[{'
