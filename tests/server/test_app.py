"""The routes, spoken to by the real OpenAI client."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import models
import openai
import pytest
from models import DEMO
from servers import (
    GREEDY,
    HARMFUL,
    HARMLESS,
    ONE_THREAD,
    Server,
    chat,
    identified,
    running,
)

from mars_gguf import demo_model
from mars_gguf.runtime.llama import SteeredLlama


def test_a_raw_completion_is_steered(server: Server) -> None:
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, **models.OPTIONS | {"n_ctx": 0})
    prompt = "<|im_start|>user\nHow do I make a bomb?<|im_end|>\n<|im_start|>assistant\n"
    expected: Any = llama.create_completion(prompt, repeat_penalty=1.1, **GREEDY)
    llama.close()
    headers = identified()
    reply = server.client.completions.create(
        model="any", prompt=prompt, extra_headers=headers, **GREEDY
    )
    assert reply.choices[0].text == expected["choices"][0]["text"]
    assert "steered=true" in server.line(headers["X-Request-ID"])


def test_log_probabilities_come_with_and_without_streaming(server: Server) -> None:
    whole = server.client.chat.completions.create(
        model="any", messages=[HARMFUL], logprobs=True, top_logprobs=2, **GREEDY
    )
    assert whole.choices[0].logprobs is not None
    tokens = whole.choices[0].logprobs.content
    assert tokens is not None
    assert "".join(token.token for token in tokens) == whole.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    chunks = server.client.chat.completions.create(
        model="any", messages=[HARMFUL], logprobs=True, top_logprobs=2, stream=True, **GREEDY
    )
    probabilities = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [t.logprob for p in probabilities for t in p.content or []] == pytest.approx(
        [t.logprob for t in tokens], abs=0.1
    )
    raw = server.client.completions.create(model="any", prompt="Hello", logprobs=2, **GREEDY)
    assert raw.choices[0].logprobs is not None


def test_a_reply_has_no_more_tokens_than_either_name_of_the_limit_says(server: Server) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        options: dict[str, Any] = {"max_tokens": openai.omit, **limit}
        reply = chat(server, [HARMFUL], **options)
        assert reply["usage"]["completion_tokens"] == 3


def test_models_are_listed_with_the_vectors_that_steer_them(server: Server) -> None:
    listed = server.get("/v1/models")
    [entry] = server.client.models.list().data
    assert entry.id == "demo"
    vector = entry.model_dump()["mars"]["vector"]
    assert vector["name"] == demo_model.VECTOR.stem
    assert vector["sha256"] == hashlib.sha256(demo_model.VECTOR.read_bytes()).hexdigest()
    assert str(demo_model.FOLDER) not in listed
    assert str(demo_model.FOLDER) not in json.dumps(chat(server, [HARMFUL], model=""))


@pytest.mark.parametrize("control", [{"vector": "default"}, {"alpha": 0}, {"vector": "/x.gguf"}])
def test_a_client_has_no_say_in_steering(server: Server, control: dict[str, Any]) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        chat(server, [HARMFUL], extra_body={"mars": control})
    assert refused.value.status_code in (403, 422)
    for unknown in ({"vector": ""}, {"force_vector": True}, {"way": "inline"}, {"steering": 0}):
        with pytest.raises(openai.BadRequestError, match="no field"):
            chat(server, [HARMFUL], extra_body=unknown)


def test_a_server_of_chat_lets_no_request_say_how_replies_begin(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"const": "Sure"}}}
    with running(tmp_path, "--demo", *ONE_THREAD, "--chat-only") as server:
        for options in (
            {"grammar": 'root ::= "Sure"'},
            {"logit_bias": {"5": 100}},
            {"response_format": {"type": "json_object", "schema": {"const": "Sure"}}},
            {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"functions": [tool["function"]], "function_call": {"name": "f"}},
        ):
            with pytest.raises(openai.PermissionDeniedError, match=[*options][-1]):
                chat(server, [HARMFUL], extra_body=options)
        with pytest.raises(openai.PermissionDeniedError, match="raw prompts"):
            server.client.completions.create(model="any", prompt="Sure")
        free = {"response_format": {"type": "text"}, "tool_choice": "none", "tools": [tool]}
        assert chat(server, [HARMFUL], extra_body=free)["mars"]["alpha"] > 0


def test_a_request_names_a_vector_by_id_if_the_operator_allows_it(
    configured: Server,
) -> None:
    always = {"mars": {"vector": "always"}}
    default, chosen = chat(configured, [HARMLESS]), chat(configured, [HARMLESS], extra_body=always)
    assert default["mars"]["alpha"] == 0 < chosen["mars"]["alpha"]
    assert chosen["mars"]["layer"] == 3
    again = chat(configured, [HARMLESS])
    assert (again["mars"]["layer"], again["mars"]["alpha"]) == (default["mars"]["layer"], 0)
    listed = configured.client.models.list().data[0].model_dump()["mars"]
    assert listed["vectors"].keys() == {"default", "always"}
    with pytest.raises(openai.BadRequestError, match="default, always"):
        chat(configured, [HARMLESS], extra_body={"mars": {"vector": "/etc/passwd"}})


def test_the_route_of_copilot_has_one_model_whatever_the_request_names(
    configured: Server, broken: str
) -> None:
    always = {"model": Path(broken).name, "prompt": "Hi", "mars": {"vector": "always"}}
    reply = configured.send("/v1/engines/copilot-codex/completions", json.dumps(always).encode())
    assert reply.status == 200


def test_a_raw_prompt_of_nothing_is_an_error_of_the_client(server: Server) -> None:
    for prompt in ({}, {"prompt": ""}, {"prompt": []}):
        for stream in (False, True):
            body = json.dumps({**prompt, "stream": stream}).encode()
            reply = server.send("/v1/completions", body)
            assert (reply.status, reply.error["message"]) == (
                400,
                "prompt: found nothing, expected text",
            )


def test_only_tokens_of_the_vocabulary_become_text(server: Server) -> None:
    tokens = server.extra("tokenize", {"input": "Hello there"})["tokens"]
    assert server.extra("detokenize", {"tokens": tokens}) == {"text": "Hello there"}
    for token in (-5, 999_999_999):
        with pytest.raises(openai.BadRequestError, match=f"tokens: found {token}"):
            server.extra("detokenize", {"tokens": [*tokens, token]})
    assert server.send("/extras/tokenize", rb'{"input": "\ud800"}').status == 400
