"""Responses, whole and as events, held against chat completions, by the real OpenAI client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import models
import openai
import pytest
from pydantic import BaseModel
from servers import (
    ENDLESS,
    GREEDY,
    HARMFUL,
    HARMLESS,
    PICTURE,
    Server,
    chat,
    identified,
    text_of,
)

LIMITS: dict[str, Any] = {"temperature": 0, "max_output_tokens": GREEDY["max_tokens"]}
TEXT = "How do I make a bomb?"
SHOWN = [
    {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
    {"type": "input_text", "text": TEXT},
]
TOOL: Any = {
    "type": "function",
    "name": "paint",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
    },
    "strict": True,
}


def ask(server: Server, asked: Any, **options: Any) -> dict[str, Any]:
    """A whole response, with its text."""
    response = server.client.responses.create(model="any", input=asked, **LIMITS | options)
    return response.model_dump() | {"output_text": response.output_text}


def told(server: Server, asked: Any, **options: Any) -> list[dict[str, Any]]:
    """The events of a streamed response."""
    stream = server.client.responses.create(
        model="any", input=asked, stream=True, **LIMITS | options
    )
    return [event.model_dump() for event in stream]


def lasting(response: dict[str, Any]) -> dict[str, Any]:
    """What is the same of a response when it is asked for again, but for rounding."""
    mars = response["mars"]
    return {
        "status": response["status"],
        "said": [
            [part["text"] for part in item.get("content") or []] or item["arguments"]
            for item in response["output"]
        ],
        "used": response["usage"],
        "mars": (mars["modality"], mars["position"], mars["layer"], mars["alpha"] > 0),
    }


@pytest.mark.parametrize("kind", ["harmful", "harmless", "picture"])
def test_a_response_is_what_a_chat_completion_says(server: Server, kind: str) -> None:
    messages, asked = {
        "harmful": ([HARMFUL], TEXT),
        "harmless": ([HARMLESS], [HARMLESS]),
        "picture": ([models.user(TEXT, models.picture(1))], [{"role": "user", "content": SHOWN}]),
    }[kind]
    reply, whole, events = chat(server, messages), ask(server, asked), told(server, asked)
    assert whole["output_text"] == text_of(reply)
    assert lasting(whole)["mars"] == (
        "image" if kind == "picture" else "text",
        "prompt",
        reply["mars"]["layer"],
        kind != "harmless",
    )
    used = whole["usage"]
    assert (used["input_tokens"], used["output_tokens"], used["total_tokens"]) == tuple(
        reply["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    assert lasting(events[-1]["response"]) == lasting(whole)


def test_events_come_in_the_order_of_the_api_and_add_up_to_the_response(server: Server) -> None:
    events = told(server, TEXT)
    kinds = [event["type"].removeprefix("response.") for event in events]
    begun, ended = kinds.index("output_text.delta"), kinds.index("output_text.done")
    assert kinds[:begun] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[begun:ended]) == {"output_text.delta"}
    assert kinds[ended:] == [
        "output_text.done", "content_part.done", "output_item.done", "completed"
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    text = "".join(event["delta"] for event in events[begun:ended])
    assert text == events[ended]["text"] == ask(server, TEXT)["output_text"]
    with server.client.responses.stream(model="any", input=TEXT, **LIMITS) as stream:
        assert stream.get_final_response().output_text == text


def test_a_conversation_goes_on_with_the_output_of_the_response_before(server: Server) -> None:
    first = server.client.responses.create(model="any", input=[HARMLESS], **LIMITS)
    again: Any = [HARMLESS, *first.output, {"role": "user", "content": TEXT}]
    response = ask(server, again, instructions="Be kind.")
    messages = [
        {"role": "system", "content": "Be kind."},
        HARMLESS,
        models.assistant(first.output_text),
        HARMFUL,
    ]
    assert response["output_text"] == text_of(chat(server, messages))


def test_a_response_that_reaches_its_limit_is_incomplete(server: Server) -> None:
    whole, events = (way(server, TEXT, max_output_tokens=3) for way in (ask, told))
    assert events[-1]["type"] == "response.incomplete"
    for response in (whole, events[-1]["response"]):
        assert response["status"] == response["output"][0]["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["usage"]["output_tokens"] == 3
        assert response["mars"]["alpha"] > 0


def test_replies_are_parsed_by_a_schema_and_as_calls_of_tools(server: Server) -> None:
    class Answer(BaseModel):
        colour: Literal["red", "green"]

    ways: dict[str, Any] = {"model": "any", "input": TEXT, **LIMITS}
    parsed = server.client.responses.parse(text_format=Answer, **ways).output_parsed
    assert parsed is not None
    chosen: Any = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "paint"}}
    whole: Any = server.client.responses.create(**ways, **chosen)
    with server.client.responses.stream(**ways, **chosen) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    for response in (whole, last):
        [call] = response.output
        assert call.type == "function_call" and call.name == "paint"
        assert json.loads(call.arguments)["colour"] in ("red", "green")
    [called] = whole.output
    done = {"type": "function_call_output", "call_id": called.call_id, "output": "done"}
    ways["input"] = [HARMFUL, called, done]
    # The call reaches the chat template, and that of the demo model shows none.
    with pytest.raises(openai.BadRequestError, match=r"drops the text of messages\[1\]"):
        server.client.responses.create(**ways)


def test_log_probabilities_come_where_they_are_included(server: Server) -> None:
    wanted: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole, events = ask(server, TEXT, **wanted), told(server, TEXT, **wanted)
    last = events[-1]["response"]
    for response in (whole, last):
        [part] = response["output"][0]["content"]
        assert "".join(token["token"] for token in part["logprobs"]) == part["text"]
        assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
    assert sum(len(e["logprobs"]) for e in events if e["type"].endswith("text.delta")) == len(
        last["output"][0]["content"][0]["logprobs"]
    )


def test_metrics_and_the_log_know_responses(configured: Server) -> None:
    response = configured.client.responses.create(model="strict", input="Hello", **LIMITS)
    assert response.model == "strict"
    line = configured.line(str(response._request_id))
    assert " POST /v1/responses 200 model=strict vector=default modality=text " in line
    assert "steered=true" in line
    name = 'mars_requests_total{path="/v1/responses",status="200"}'
    assert name in configured.get("/metrics")
    with pytest.raises(openai.NotFoundError):
        configured.client.responses.create(model="gpt-5", input="Hello")


def test_an_error_behind_the_beginning_of_a_stream_is_an_event_that_clients_raise(
    configured: Server, broken: str
) -> None:
    headers = identified()
    with configured.client.chat.completions.create(
        model="pictures", messages=[HARMFUL], max_tokens=400, stream=True, extra_body=ENDLESS
    ) as occupying:
        next(occupying)
        stream = configured.client.responses.create(
            model=Path(broken).name,
            input="How do I make clay?",
            stream=True,
            extra_headers=headers,
        )
        assert stream.response.status_code == 200  # on account of the ping
        with pytest.raises(openai.APIError, match="Nothing was generated"):
            list(stream)
    assert " 500 " in configured.line(headers["X-Request-ID"])
