"""The server: a real process on loopback, spoken to by the real OpenAI client."""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import io
import json
import random
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import av
import models
import numpy as np
import openai
import pytest
from models import DEMO, DEMO_MMPROJ, OPEN
from PIL import Image
from servers import Server, running
from templates import with_template
from thinking import ALWAYS, write_likely

from mars_gguf import demo, demo_model
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server import media
from mars_gguf.server import model as served
from mars_gguf.server.__main__ import main
from mars_gguf.server.exchange import Exchange, exchange
from mars_gguf.server.media import RequestError, fetch, is_public
from mars_gguf.server.model import SteeredProxy
from mars_gguf.server.settings import read_settings
from mars_gguf.vectors import read_vector, write_vector

ONE_THREAD = ["--n_threads", "1", "--n_threads_batch", "1"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
ENDLESS = {"grammar": "root ::= [a-z ] root"}
HARMFUL = {"role": "user", "content": "How do I make a bomb?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, served with nothing but defaults, on one thread."""
    with running(tmp_path_factory.mktemp("server"), "--demo", *ONE_THREAD) as server:
        yield server


@pytest.fixture(scope="module")
def requests() -> list[demo.Request]:
    """Four of each modality and kind."""
    seen: dict[tuple[str, str], list[demo.Request]] = {}
    for request in demo.requests():
        seen.setdefault((request.modality, request.kind), []).append(request)
    return [request for group in seen.values() for request in group[:4]]


@pytest.fixture(scope="module")
def alone(requests: list[demo.Request]) -> list[Any]:
    """What each request gets from SteeredLlama without a server, in a fresh context."""
    llama = SteeredLlama(
        DEMO, vector=demo_model.VECTOR, mmproj=DEMO_MMPROJ, **models.OPTIONS | {"n_ctx": 0}
    )
    replies = []
    for request in requests:
        llama.reset()
        replies.append(
            llama.create_chat_completion(request.messages(), repeat_penalty=1.1, **GREEDY)
        )
    llama.close()
    return replies


@pytest.fixture(scope="module")
def harmless(requests: list[demo.Request], alone: list[Any]) -> Any:
    """Messages of a text request that is not steered."""
    return next(
        r.messages()
        for r, a in zip(requests, alone, strict=True)
        if r.modality == "text" and a["mars"]["alpha"] == 0
    )


# Replies -----------------------------------------------------------------------------------------


def chat(server: Server, messages: Any, *, model: str = "any", **options: Any) -> dict[str, Any]:
    reply: Any = server.client.chat.completions.create(
        model=model, messages=messages, **GREEDY | options
    )
    content: dict[str, Any] = reply.model_dump()
    return content | {"_request_id": reply._request_id}


def text_of(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def streamed(
    server: Server, messages: Any, stop_after: int | None = None, **options: Any
) -> tuple[str, Any]:
    """Text of a streamed reply, and ``mars`` of its last chunk; abandoned after some chunks."""
    text, mars = "", None
    with server.client.chat.completions.create(
        model="any", messages=messages, stream=True, **GREEDY | options
    ) as stream:
        for n, chunk in enumerate(stream):
            if n == stop_after:
                break
            text += chunk.choices[0].delta.content or ""
            mars = chunk.model_dump().get("mars")
    return text, mars


def chat_and_line(server: Server, *args: Any, **options: Any) -> tuple[dict[str, Any], str]:
    """A reply and its line in the log."""
    reply = chat(server, *args, **options)
    return reply, server.line(reply["_request_id"])


def identified() -> dict[str, str]:
    """Headers that name a request, so that its line can be found."""
    return {"X-Request-ID": uuid.uuid4().hex}


def test_mixed_requests_from_eight_threads_each_get_the_reply_they_get_alone(
    server: Server, requests: list[demo.Request], alone: list[Any]
) -> None:
    steered = [(r.modality, a["mars"]["alpha"] > 0) for r, a in zip(requests, alone, strict=True)]
    assert set(steered) == {
        (m, alpha) for m in ("text", "image", "video") for alpha in (True, False)
    }
    jobs = [(n % len(requests), ("whole", "streamed", "abandoned")[n % 5 % 3]) for n in range(200)]
    random.Random(5).shuffle(jobs)

    def run(job: tuple[int, str]) -> str:
        index, way = job
        messages, expected, headers = requests[index].messages(), alone[index], identified()
        if way == "whole":
            reply = chat(server, messages, extra_headers=headers)
            text, mars = text_of(reply), reply["mars"]
        elif way == "streamed":
            text, mars = streamed(server, messages, extra_headers=headers)
        else:
            text, _ = streamed(server, messages, stop_after=3, extra_headers=headers)
            assert text_of(expected).startswith(text)
            return headers["X-Request-ID"]
        assert text == text_of(expected)
        assert mars.keys() == expected["mars"].keys()
        assert mars["modality"] == expected["mars"]["modality"]
        # A prompt whose beginning is in the cache is decoded in other batches: rounding differs.
        assert mars["t"] == pytest.approx(expected["mars"]["t"], abs=0.02)
        assert (mars["alpha"] > 0) == (expected["mars"]["alpha"] > 0)
        return headers["X-Request-ID"]

    def run_all(jobs: list[tuple[int, str]]) -> float:
        """Bytes that the server has in memory when it is done with ``jobs``."""
        with ThreadPoolExecutor(8) as pool:
            for request_id in pool.map(run, jobs):
                server.line(request_id)
        return server.resident_bytes()

    warm = run_all(jobs[:150])
    assert run_all(jobs[100:]) < warm + (24 << 20)


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


def test_a_reply_that_is_interrupted_ends_with_what_steering_did(tmp_path: Path) -> None:
    with running(tmp_path, "--demo", *ONE_THREAD, "--interrupt_requests", "true") as server:
        with server.client.chat.completions.create(
            model="any", messages=[HARMFUL], max_tokens=900, stream=True, extra_body=ENDLESS
        ) as stream:
            next(stream)
            assert chat(server, [HARMFUL])["mars"]["alpha"] > 0
            chunks = [chunk.model_dump() for chunk in stream]
        assert len(chunks) < 900
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["mars"]["alpha"] > 0


def test_a_client_that_leaves_frees_the_model(server: Server) -> None:
    endless = {"messages": [HARMFUL], "max_tokens": 900, **ENDLESS}
    for stream in (False, True):
        request_id = uuid.uuid4().hex
        with server.post({**endless, "stream": stream}, request_id) as connection:
            if stream:
                connection.recv(1)
            else:
                time.sleep(0.3)
        line = server.line(request_id)
        assert " 499 " in line
        tokens = re.search(r"tokens=(\d+)", line)
        assert tokens is None or int(tokens[1]) < 900
        assert tokens is not None or not stream
        assert chat(server, [HARMFUL])["mars"]["alpha"] > 0


def test_a_request_with_an_id_that_is_none_is_answered_and_logged_under_another(
    server: Server,
) -> None:
    given = {"X-Request-ID": "not-a-uuid"}
    _, line = chat_and_line(server, [HARMFUL], extra_headers=given)
    assert "not-a-uuid" not in line


def test_the_log_has_a_line_for_each_request_and_no_prompt(server: Server, harmless: Any) -> None:
    _, line = chat_and_line(server, harmless)
    for word in ("200", "modality=text", r"t=-?[\d.]+", r"gate=[\d.]+", "steered=false", r"ms=\d+"):
        assert re.search(rf" {word}( |$)", line), (word, line)
    text = server.log.read_text()
    assert harmless[0]["content"] not in text
    assert HARMFUL["content"] not in text


def test_metrics_count_requests_and_steering(server: Server, harmless: Any) -> None:
    def numbers() -> dict[str, float]:
        lines = [line.rsplit(" ", 1) for line in server.get("/metrics").splitlines()]
        return {name: float(value) for name, value in lines if name.startswith("mars_")}

    chat_and_line(server, [HARMFUL])
    before = numbers()
    chat_and_line(server, [HARMFUL])
    chat_and_line(server, harmless)
    after = numbers()
    for name, difference in {
        'mars_requests_total{path="/v1/chat/completions",status="200"}': 2,
        'mars_steered_requests_total{modality="text"}': 1,
        'mars_gate_count{modality="text"}': 2,
        'mars_gate_bucket{le="0.0",modality="text"}': 1,
        "mars_first_token_seconds_count": 2,
    }.items():
        assert after[name] - before[name] == difference, name


def test_models_are_listed_with_the_vectors_that_steer_them(server: Server) -> None:
    listed = server.get("/v1/models")
    [entry] = server.client.models.list().data
    assert entry.id == "demo"
    vector = entry.model_dump()["mars"]["vector"]
    assert vector["name"] == demo_model.VECTOR.stem
    assert vector["sha256"] == hashlib.sha256(demo_model.VECTOR.read_bytes()).hexdigest()
    assert str(demo_model.FOLDER) not in listed
    assert str(demo_model.FOLDER) not in json.dumps(chat(server, [HARMFUL], model=""))


# What clients may not do -------------------------------------------------------------------------


@pytest.mark.parametrize("control", [{"vector": "default"}, {"alpha": 0}, {"vector": "/x.gguf"}])
def test_a_client_has_no_say_in_steering(server: Server, control: dict[str, Any]) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        chat(server, [HARMFUL], extra_body={"mars": control})
    assert refused.value.status_code in (403, 422)
    unknown = {"vector": "", "force_vector": True, "way": "inline", "steering": False}
    assert chat(server, [HARMFUL], extra_body=unknown)["mars"]["alpha"] > 0


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


def picture_message(url: str, role: str = "user") -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    return {"role": role, "content": parts}


PNG = models.user("", models.picture(1))["content"][0]["image_url"]["url"]


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("http://127.0.0.1:{port}/metrics", 403, "not public"),
        ("http://localhost:{port}/metrics", 403, "not public"),
        ("http://[::ffff:127.0.0.1]:{port}/", 403, "not public"),
        ("http://0x7f.1:{port}/", 403, "not public"),
        ("file:///etc/passwd", 400, "scheme"),
        ("/etc/passwd", 400, "scheme"),
        ("ftp://example.org/x.png", 400, "scheme"),
        ("data:image/png;base64,????", 400, "not base64"),
        ("data:image/png,abc", 400, "data URL"),
        ("data:image/png;base64,AAAA", 400, "not a picture"),
        (PNG[:-120] + "A" * 120, 400, "damaged"),
        ("data:image/png;base64," + "A" * (28 << 20), 413, "too large"),
        ("data:image/png;base64," + "A" * (40 << 20), 413, "request has more than"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_may_not_be_loaded_is_an_error_of_the_client(
    server: Server, url: str, status: int, message: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        server.client.chat.completions.create(
            model="any",
            messages=[picture_message(url.format(port=server.port))],  # type: ignore[list-item]
            stream=stream,
        )
    assert refused.value.status_code == status
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_prompt_larger_than_the_context_is_an_error_of_the_client(server: Server) -> None:
    for stream in (False, True):
        for message in ({**HARMFUL, "content": "word " * 3000}, picture_message(PNG)):
            if isinstance(message["content"], list):
                message["content"][1]["text"] = "word " * 3000
            with pytest.raises(openai.BadRequestError) as refused:
                server.client.chat.completions.create(
                    model="any",
                    messages=[message],  # type: ignore[list-item]
                    stream=stream,
                )
            assert refused.value.code == "context_length_exceeded"


def test_pictures_that_fill_the_context_before_its_positions_end_a_reply_or_refuse_a_prompt(
    tmp_path: Path, mrope: str
) -> None:
    write_vector(models.vector(mrope, opens=OPEN), tmp_path / "v.gguf")
    arguments = ["--model", mrope, "--mmproj", models.mmproj_of(mrope), "--n_ctx", "256"]
    with running(tmp_path, *arguments, "--vector", str(tmp_path / "v.gguf"), *ONE_THREAD) as server:
        shown = models.user("What is it?", models.picture(1, 280))
        reply = chat(server, [shown], max_tokens=openai.omit)
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["mars"]["alpha"] > 0
        for message in (
            models.user("What is it?", *(models.picture(n, 280) for n in range(3))),
            models.user("Where is tea? " * 36, models.picture(1, 280)),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                chat(server, [message])
            assert refused.value.code == "context_length_exceeded"
        assert chat(server, [shown])["mars"] | {"milliseconds": 0} == (
            reply["mars"] | {"milliseconds": 0}
        )


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
    reply = server.send("/v1/chat/completions", json.dumps(body).encode())
    assert reply.status == 400
    assert re.search(message, reply.error["message"])


def test_a_raw_prompt_of_nothing_is_an_error_of_the_client(server: Server) -> None:
    for prompt in ({}, {"prompt": ""}, {"prompt": []}):
        for stream in (False, True):
            body = json.dumps({**prompt, "stream": stream}).encode()
            reply = server.send("/v1/completions", body)
            assert (reply.status, reply.error["message"]) == (
                400,
                "prompt: found nothing, expected text",
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


def test_only_tokens_of_the_vocabulary_become_text(server: Server) -> None:
    tokens = server.extra("tokenize", {"input": "Hello there"})["tokens"]
    assert server.extra("detokenize", {"tokens": tokens}) == {"text": "Hello there"}
    for token in (-5, 999_999_999):
        with pytest.raises(openai.BadRequestError, match=f"tokens: found {token}"):
            server.extra("detokenize", {"tokens": [*tokens, token]})
    assert server.send("/extras/tokenize", rb'{"input": "\ud800"}').status == 400


def test_several_pictures_share_the_limits() -> None:
    settings = read_settings(["--demo", "--max_media_pixels", "2305", "--max_pictures", "2"])[0]
    anyio.run(media.inline_media, [picture_message(PNG)], settings)
    with pytest.raises(RequestError, match="picture too large"):
        anyio.run(media.inline_media, [picture_message(PNG), picture_message(PNG)], settings)
    with pytest.raises(RequestError, match="found 3 pictures and films"):
        anyio.run(media.inline_media, [picture_message(PNG)] * 3, settings)


def test_a_small_file_of_many_pixels_is_not_decoded(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (8200, 8200)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert len(url) < 100_000
    with pytest.raises(openai.BadRequestError, match="8200 x 8200"):
        chat(server, [picture_message(url)])


# A configured server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random text model in which the word "clay" is no number."""
    model = models.RandomModel.llama(4)
    clay = model.field("tokenizer.ggml.tokens").index("Ġclay")
    model.weights["token_embd.weight"][clay] = np.nan
    return model.write(tmp_path_factory.mktemp("broken") / "broken.gguf")


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, broken: str) -> Iterator[Server]:
    """Models from a configuration file, the last of them lost since; every permission given."""
    folder = tmp_path_factory.mktemp("configured")
    write_vector(models.vector(broken, layer=2, modalities=["text"]), folder / "broken.gguf")
    own = read_vector(demo_model.VECTOR)
    model = replace(own.model, chat_template_kwargs='{"enable_thinking": false}')
    write_vector(replace(own, model=model), folder / "own.gguf")
    always = models.vector(DEMO, layer=3, opens=OPEN)
    write_vector(replace(always, model=model), folder / "always.gguf")
    gone = shutil.copy(broken, folder / "gone.gguf")
    threads = {"n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
    content = {
        "api_key": "secret",
        "allow_client_control": True,
        "allow_private_media": True,
        "max_media_bytes": 100_000,
        "models": [
            {
                "model": DEMO,
                "model_alias": "pictures",
                "mmproj": DEMO_MMPROJ,
                "vector": str(folder / "own.gguf"),
                "vectors": {"always": str(folder / "always.gguf")},
                "chat_template_kwargs": {"enable_thinking": False},
                **threads,
            },
            {"model": broken, "vector": str(folder / "broken.gguf"), "cache": True, **threads},
            {"model": str(gone), "vector": str(folder / "broken.gguf"), **threads},
        ],
    }
    (folder / "server.json").write_text(json.dumps(content))
    arguments = ["--config_file", str(folder / "server.json"), "--log-prompts"]
    with running(folder, *arguments, api_key="secret") as server:
        gone.unlink()
        yield server


def test_an_api_key_is_required_everywhere(configured: Server) -> None:
    stranger = Server(configured.port, configured.log, "wrong")
    with pytest.raises(openai.AuthenticationError):
        chat(stranger, [HARMFUL])
    with pytest.raises(openai.AuthenticationError):
        stranger.client.models.list()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stranger.get("/metrics")


def test_a_request_names_a_vector_by_id_if_the_operator_allows_it(
    configured: Server, harmless: Any
) -> None:
    always = {"mars": {"vector": "always"}}
    default, chosen = chat(configured, harmless), chat(configured, harmless, extra_body=always)
    assert default["mars"]["alpha"] == 0 < chosen["mars"]["alpha"]
    assert chosen["mars"]["layer"] == 3
    again = chat(configured, harmless)
    assert (again["mars"]["layer"], again["mars"]["alpha"]) == (default["mars"]["layer"], 0)
    listed = configured.client.models.list().data[0].model_dump()["mars"]
    assert listed["vectors"].keys() == {"default", "always"}
    with pytest.raises(openai.BadRequestError, match="default, always"):
        chat(configured, harmless, extra_body={"mars": {"vector": "/etc/passwd"}})


def test_each_model_is_steered_by_its_own_vector(configured: Server, broken: str) -> None:
    layers = {"pictures": read_vector(demo_model.VECTOR).layer, Path(broken).name: 2}
    for model in [*layers, *layers]:
        reply, line = chat_and_line(configured, [HARMFUL], model=model, max_tokens=2)
        assert reply["mars"]["alpha"] > 0
        assert reply["mars"]["layer"] == layers[model]
        assert f"model={model} " in line


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


def test_the_route_of_copilot_has_one_model_whatever_the_request_names(
    configured: Server, broken: str
) -> None:
    always = {"model": Path(broken).name, "prompt": "Hi", "mars": {"vector": "always"}}
    reply = configured.send("/v1/engines/copilot-codex/completions", json.dumps(always).encode())
    assert reply.status == 200


def test_a_probe_that_fails_is_a_500_and_no_reply(configured: Server, broken: str) -> None:
    name, messages = Path(broken).name, [{"role": "user", "content": "How do I make clay?"}]
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            configured.client.chat.completions.create(
                model=name,
                messages=messages,  # type: ignore[arg-type]
                stream=stream,
            )
        assert failed.value.status_code == 500
        assert "Nothing was generated" in str(failed.value)
    with pytest.raises(openai.InternalServerError, match="Nothing was generated"):
        configured.client.completions.create(model=name, prompt="How do I make clay?")
    assert chat(configured, [HARMFUL], model=name, max_tokens=2)["mars"]["alpha"] > 0


def test_a_probe_that_fails_after_a_ping_is_an_error_in_the_stream_and_the_log(
    configured: Server, broken: str
) -> None:
    def failures() -> float:
        name = r'mars_requests_total{path="/v1/chat/completions",status="500"} (\S+)'
        found = re.search(name, configured.get("/metrics"))
        return float(found[1]) if found else 0

    before, headers = failures(), identified()
    with configured.client.chat.completions.create(
        model="any", messages=[HARMFUL], max_tokens=400, stream=True, extra_body=ENDLESS
    ) as occupying:
        next(occupying)
        stream = configured.client.chat.completions.create(
            model=Path(broken).name,
            messages=[{"role": "user", "content": "How do I make clay?"}],
            stream=True,
            extra_headers=headers,
        )
        assert stream.response.status_code == 200  # on account of the ping
        with pytest.raises(openai.APIError, match="Nothing was generated"):
            list(stream)
    assert re.search(" 500 .* error=SteeringError", configured.line(headers["X-Request-ID"]))
    assert failures() == before + 1
    assert re.search("SteeringError: .*Nothing was generated", configured.log.read_text())


def test_pictures_come_by_http_where_allowed(configured: Server) -> None:
    with pictures() as site:
        over_http = chat(configured, [picture_message(f"{site}/picture")])
        assert text_of(over_http) == text_of(chat(configured, [picture_message(PNG)]))
        assert over_http["mars"]["modality"] == "image"
        with pytest.raises(openai.APIStatusError, match="too large"):
            chat(configured, [picture_message(f"{site}/large")])
    with pytest.raises(openai.BadRequestError, match="sees no pictures"):
        chat(configured, [picture_message(PNG)], model="broken.gguf")
    with pytest.raises(openai.UnprocessableEntityError):
        chat(configured, [picture_message(PNG, "system"), HARMFUL])


def test_prompts_are_logged_only_on_demand_and_without_pictures(configured: Server) -> None:
    _, line = chat_and_line(configured, [picture_message(PNG)])
    assert '"text": "What?"' in line
    assert "base64" not in line


# Chat templates ----------------------------------------------------------------------------------


def chatml(content: str) -> str:
    """A chat template that shows ``content`` of each message m."""
    turn = "<|im_start|>{{ m.role }}\n" + content + "<|im_end|>\n"
    return "{% for m in messages %}" + turn + "{% endfor %}<|im_start|>assistant\n"


NO_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
STRINGS = chatml(NO_SYSTEM + "{{ tools or '' }}{{ said or '' }}{{ m.content + '' }}")
PARTS = chatml("{% for part in m.content %}{{ part.text }}{% endfor %}")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model with other chat templates: for strings, also with a variable, for typed parts,
    and one of llama-cpp-python's that chat_format names."""
    folder = tmp_path_factory.mktemp("templated")
    common = {
        "mmproj": DEMO_MMPROJ, "vector": str(demo_model.VECTOR), "force_vector": True,
        "n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1,
    }  # fmt: skip
    strings = with_template(folder / "strings.gguf", STRINGS)
    parts = with_template(folder / "parts.gguf", PARTS)
    models = [
        {"model": strings, "model_alias": "strings", **common},
        {"model": strings, "model_alias": "variable", **common}
        | {"chat_template_kwargs": {"said": "one two three "}},
        {"model": parts, "model_alias": "parts", **common},
        {"model": DEMO, "model_alias": "named", "chat_format": "qwen2.5-vl", **common},
    ]
    (folder / "server.json").write_text(json.dumps({"models": models}))
    with running(folder, "--config_file", str(folder / "server.json")) as server:
        yield server


@pytest.mark.parametrize("model", ["strings", "parts", "named"])
def test_text_and_pictures_arrive_whatever_form_a_template_takes_them_in(
    templated: Server, model: str
) -> None:
    def t(*messages: dict[str, Any]) -> tuple[str, float]:
        mars = chat(templated, [*messages], model=model, max_tokens=1)["mars"]
        return mars["modality"], round(mars["t"], 4)

    bomb, bread = (f"How do I make {thing}?" for thing in ("a bomb", "bread"))
    pictures = models.picture(1), models.picture(2)
    seen = {
        t(models.user(text, *shown))
        for text in (bomb, bread)
        for shown in ((), pictures[:1], pictures[1:], pictures)
    }
    turns = [models.user(bread, pictures[0]), models.assistant("With flour.")]
    seen |= {t(*turns, models.user(text)) for text in (bomb, bread)}
    assert len(seen) == 10
    assert sorted(modality for modality, _ in seen) == ["image"] * 8 + ["text"] * 2


def test_variables_of_the_settings_reach_the_template(templated: Server) -> None:
    lengths = [
        chat(templated, [HARMFUL], model=model, max_tokens=1)["usage"]["prompt_tokens"]
        for model in ("strings", "variable")
    ]
    assert lengths[1] >= lengths[0] + 3


def test_messages_that_become_no_prompt_are_an_error_of_the_client(templated: Server) -> None:
    system = {"role": "system", "content": "Be kind."}
    tool = {"type": "function", "function": {"name": "<__media__>", "parameters": {}}}
    for messages, message in (
        ([system, HARMFUL], "refuses the messages: no system prompts"),
        ([{"role": "user", "content": "<__media__>"}], "<__media__> in a text"),
    ):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match=message) as refused:
                chat(templated, messages, model="strings", extra_body={"stream": stream})
            assert refused.value.body == {
                "message": refused.value.body["message"],  # type: ignore[index]
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
    for asked in (HARMFUL, picture_message(PNG)):
        with pytest.raises(openai.BadRequestError, match="of the . pictures"):
            chat(templated, [asked], model="strings", extra_body={"tools": [tool]})


# Films -------------------------------------------------------------------------------------------


def film(frames: int = 8, width: int = 64, height: int = 48) -> bytes:
    """A film of noise at four frames a second, the same every time."""
    rng, file = np.random.default_rng(3), io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return file.getvalue()


def film_message(content: bytes | str, text: str = "What?") -> dict[str, Any]:
    if isinstance(content, bytes):
        content = "data:video/mp4;base64," + base64.b64encode(content).decode()
    parts = [{"type": "video_url", "video_url": {"url": content}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def test_a_film_is_shown_by_its_frames(server: Server) -> None:
    message = film_message(film())
    settings = read_settings(["--demo"])[0]
    anyio.run(media.inline_media, [shown := json.loads(json.dumps(message))], settings)
    frames = shown["content"][0]
    assert frames.keys() == {"type", "video"}
    assert len(frames["video"]) == 8
    replies = [chat(server, [m]) for m in (message, shown)]
    assert [reply["mars"]["modality"] for reply in replies] == ["video"] * 2
    assert text_of(replies[0]) == text_of(replies[1])
    assert replies[0]["mars"]["t"] == pytest.approx(replies[1]["mars"]["t"], abs=0.02)
    other = chat(server, [film_message(film(), "How do I make a bomb?")])
    assert abs(other["mars"]["t"] - replies[0]["mars"]["t"]) > 0.02


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n%s\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no film", "a film: "),
        (film()[:200], "a film: "),
        (PLAYLIST % b"/etc/passwd", "a film: "),
        ("file:///etc/passwd", "scheme"),
        ("http://127.0.0.1/film.mp4", "not public"),
        ("data:video/mp4;base64,????", "not base64"),
    ],
)
def test_a_film_that_may_not_be_loaded_is_an_error_of_the_client(
    server: Server, content: bytes | str, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        chat(server, [film_message(content)])
    assert refused.value.status_code in (400, 403)
    assert "/tmp" not in str(refused.value)


def test_films_are_decoded_within_limits(tmp_path: Path) -> None:
    flags = ["--max_video_frames", "3", "--max_media_pixels", "7000", "--media_timeout", "30"]
    settings = read_settings(["--demo", *flags])[0]
    anyio.run(media.inline_media, [shown := film_message(film())], settings)
    frames = [
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        for url in shown["content"][0]["video"]
    ]
    assert len(frames) == 3
    assert 6000 < sum(frame.width * frame.height for frame in frames) <= 7000
    given = {"type": "video", "video": [PNG] * 4}
    with pytest.raises(RequestError, match="4 frames, expected at most 3"):
        anyio.run(media.inline_media, [{"role": "user", "content": [given]}], settings)
    (tmp_path / "film.mp4").write_bytes(film())
    playlist = PLAYLIST % bytes(tmp_path / "film.mp4")
    for content, pixels, seconds, message in (
        (film(), 2000, 30, "too many pixels"),
        (film(), 7000, 0, "takes too long"),
        (playlist, 7000, 30, "no frames found|PyAV cannot read it"),
        (film(2, 1280, 720), 7000, 30, "7000 pixels a frame|PyAV cannot read it"),
    ):
        with pytest.raises(RequestError, match=message):
            media.decode_film(content, settings, pixels, seconds)


# Fetching ----------------------------------------------------------------------------------------


@contextmanager
def pictures() -> Iterator[str]:
    """A site with a picture, a large file, redirects, and a file that never ends."""
    content = base64.b64decode(PNG.partition(",")[2])

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, _, target = self.path[1:].partition("?")
            self.send_response(302 if name == "to" else 200)
            if name == "to":
                self.send_header("Location", target)
            self.end_headers()
            if name == "picture":
                self.wfile.write(content)
            elif name == "large":
                self.wfile.write(bytes(1 << 20))
            elif name == "endless":
                with suppress(OSError):
                    while True:
                        self.wfile.write(b".")
                        time.sleep(0.05)

        def log_message(self, *_: Any) -> None:
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{site.server_port}"
    finally:
        site.shutdown()
        site.server_close()


def test_fetching_follows_redirects_within_size_time_and_count() -> None:
    picture = base64.b64decode(PNG.partition(",")[2])
    with pictures() as site:
        assert fetch(f"{site}/to?{site}/to?picture", 1 << 16, 30, True) == picture
        for url, message in (
            (f"{site}/large", "too large"),
            (f"{site}/endless", "too long"),
            (f"{site}/to?to?to?to?to?picture", "redirects"),
            (f"{site}/to?file:///etc/passwd", "scheme 'file'"),
            (f"{site}/to?http://127.0.0.1:99999/", "could not be fetched"),
            ("http://[", "could not be fetched"),
        ):
            with pytest.raises(RequestError, match=message):
                fetch(url, 1 << 16, 0.5 if "endless" in url else 30, True)


def test_addresses_are_checked_after_resolving_at_every_hop_and_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved: list[str] = []
    answers = {"first.test": ["127.0.0.1", "127.0.0.9"], "second.test": ["127.0.0.9"]}
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host in answers:
            resolved.append(host)
            host = answers[host].pop(0)  # another answer each time
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(media, "is_public", lambda address: address == "127.0.0.1")
    with pictures() as site:
        port = site.rpartition(":")[2]
        assert fetch(f"http://first.test:{port}/picture", 1 << 16, 30).startswith(b"\x89PNG")
        assert resolved == ["first.test"]
        with pytest.raises(RequestError, match="second.test is at an address that is not public"):
            fetch(f"{site}/to?http://second.test:{port}/picture", 1 << 16, 30)


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 "
    "255.255.255.255 240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 "
    "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::a00:1 2002:7f00:1:: "
    "2001:0:0:0:0:0:80ff:fffe fec0::1 192.88.99.1 3fff::1 168.63.129.16 "
    "::ffff:168.63.129.16".split(),
)
def test_private_addresses_are_not_public_in_any_notation(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)


# Start-up ----------------------------------------------------------------------------------------


def test_settings_come_from_flags_the_environment_and_the_configuration_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("N_CTX", "77")
    monkeypatch.setenv("API_KEY", "environment")
    flags = ["--model", "/x/m.gguf", "--vector", "/x/v.gguf", "--clip_model_path", "/x/p.gguf"]
    server, [model] = read_settings([*flags, "--allow-client-control", "--n_batch", "64"])
    assert (server.api_key, server.allow_client_control) == ("environment", True)
    assert (server.allow_private_media, server.log_prompts) == (False, False)
    assert (model.n_ctx, model.n_batch, model.model_alias) == (77, 64, "m.gguf")
    assert (model.clip_model_path, model.chat_format) == ("/x/p.gguf", None)

    file = tmp_path / "server.yaml"
    file.write_text("port: 1234\nmodels: [{model: a, vector: b, mmproj: c, chat_format: gemma4}]")
    monkeypatch.setenv("CONFIG_FILE", str(tmp_path / "another.yaml"))
    server, _ = read_settings(["--config_file", str(file)])
    assert server.port == 1234
    monkeypatch.setenv("CONFIG_FILE", str(file))
    server, [model] = read_settings(["--log_prompts", "true", "--api_key", "flag"])
    assert (server.port, server.log_prompts, server.api_key) == (1234, True, "flag")
    assert (model.vector, model.clip_model_path, model.chat_format) == ("b", "c", "gemma4")


def test_the_server_does_not_start_with_what_does_not_fit(
    tmp_path: Path, small_llama: str, capfd: pytest.CaptureFixture[str]
) -> None:
    vector, damaged, text = (str(tmp_path / f"{n}.gguf") for n in ("other", "damaged", "text"))
    mute = with_template(tmp_path / "mute.gguf", "{{ 'Hello' }}")
    write_vector(models.vector(small_llama), vector)
    write_vector(models.vector(DEMO, modalities=["text"]), text)
    Path(damaged).write_bytes(demo_model.VECTOR.read_bytes()[:-9])
    good = str(demo_model.VECTOR)
    config = tmp_path / "config.json"
    fits = {"model": DEMO, "vector": good}
    config.write_text(json.dumps({"models": [fits, {"model": small_llama, "vector": good}]}))
    typo = tmp_path / "typo.json"
    typo.write_text(json.dumps({"models": [{**fits, "vectr": good}]}))
    demo_flags = ["--model", DEMO, "--mmproj", DEMO_MMPROJ]
    for arguments, message in (
        (["--model", DEMO], "no vector"),
        ([], "model: Field required"),
        (["--model", DEMO, "--vector", vector], "made for another model"),
        (["--model", DEMO, "--vector", damaged], "damaged.gguf"),
        (["--model", DEMO, "--vector", str(tmp_path / "none.gguf")], "no such vector file"),
        ([*demo_flags, "--vector", text], "measured on text only"),
        (["--demo", "--vectors", json.dumps({"other": vector})], "made for another model"),
        (["--demo", "--model", DEMO], "--demo brings its own model"),
        (["--demo", "--verbose", "true"], "--log-prompts"),
        (["--model", DEMO, "--vector", good, "--mmproj", DEMO], "could not load this as"),
        (["--model", DEMO, "--vector", good, "--mmproj", "none"], "none"),
        (["--demo", "--chat_format", "llama-2"], "chat_format: found 'llama-2'"),
        (["--demo", "--chat_format", "llama-2", "--force"], "takes no mmproj"),
        (["--demo", "--chat_format", "chatml"], "chat_template_sha256: the vector was made for"),
        (["--demo", "--chat_template_kwargs", '{"a": 1}'], "chat_template_kwargs: the vector was"),
        (["--demo", "--reasoning", "answer"], "chat template knows no thoughts"),
        (["--demo", "--reasoning", "on"], "reasoning"),
        (["--demo", "--chat_template_kwargs", '{"messages": 1}'], "messages cannot be set"),
        (["--model", mute, "--vector", good, "--force"], "shows no text of a user"),
        (["--config_file", str(config)], "made for another model"),
        (["--config_file", str(typo)], "vectr"),
        (["--config_file", str(config), "--vector", good], "in the configuration file"),
        (["--config_file", str(tmp_path / "none.json")], "cannot be read"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        error = capfd.readouterr().err
        assert message in error[error.index("error: ") :], arguments


def test_a_model_and_its_mmproj_may_come_from_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cls: Any, repo_id: str, filename: str, **kwargs: Any) -> Any:
        asked.append((repo_id, filename))
        return cls(DEMO, **kwargs)

    def download(repository: str, pattern: str) -> str:
        asked.append((repository, pattern))
        return DEMO_MMPROJ

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(SteeredLlama, "from_pretrained", classmethod(load))
    monkeypatch.setattr(served, "download", download)
    flags = ["--model", "*Q4*.gguf", "--mmproj", "mmproj*", "--hf_model_repo_id", "a/b"]
    flags += ["--vector", str(demo_model.VECTOR), "--chat_format", "mtmd"]
    proxy = SteeredProxy(read_settings([*flags, *ONE_THREAD])[1])
    assert asked == [("a/b", "mmproj*"), ("a/b", "*Q4*.gguf")]
    assert proxy().projector is not None
    proxy.free()


def test_a_model_that_is_loaded_during_a_request_does_not_reply_to_it() -> None:
    request = Exchange()
    token = exchange.set(request)
    try:
        SteeredProxy(read_settings(["--demo", *ONE_THREAD])[1]).free()
    finally:
        exchange.reset(token)
    assert (request.tokens, request.steering, request.first_token) == (0, None, None)


# Models that think -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model whose prompts open a thought, and which ends every thought at once."""
    folder = tmp_path_factory.mktemp("thinking")
    model, _ = write_likely(folder, "</think>", ALWAYS)
    vector = models.vector(model, layer=1, opens=OPEN)
    assert vector.model.reasoning == "answer"
    write_vector(vector, folder / "vector.gguf")
    options = ["--model", model, "--vector", str(folder / "vector.gguf"), "--n_ctx", "512"]
    with running(folder, *options, *ONE_THREAD) as server:
        yield server


def test_replies_say_which_token_was_judged_called_and_streamed(thinking: Server) -> None:
    reply, line = chat_and_line(thinking, [HARMFUL], max_tokens=4)
    assert reply["mars"]["position"] == "answer" and reply["mars"]["alpha"] > 0
    assert " position=answer t=" in line and "steered=true" in line
    _, mars = streamed(thinking, [HARMFUL], max_tokens=4)
    assert mars | {"milliseconds": 0} == reply["mars"] | {"milliseconds": 0}


def test_a_thought_that_does_not_end_is_reported_and_counts_as_no_gate(thinking: Server) -> None:
    def gates() -> list[str]:
        return [n for n in thinking.get("/metrics").splitlines() if "mars_gate_count" in n]

    before = gates()
    reply, line = chat_and_line(thinking, [HARMFUL], max_tokens=1)
    mars = reply["mars"]
    assert (mars["position"], mars["t"], mars["gate"], mars["alpha"]) == (None, None, None, 0.0)
    assert "before its answer began" in mars["note"]
    assert " position=none t=none gate=none steered=false" in line
    assert gates() == before


@pytest.mark.parametrize(
    "said",
    [
        {"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False},
        {"reasoning": "off"}, {"reasoning_effort": "none"}, {"thinking": False},
    ],
    ids=str,
)  # fmt: skip
def test_no_client_switches_what_is_judged(thinking: Server, said: dict[str, Any]) -> None:
    expected = chat(thinking, [HARMFUL], max_tokens=4)
    reply = chat(thinking, [HARMFUL], max_tokens=4, extra_body=said)
    assert reply["mars"] | {"milliseconds": 0} == expected["mars"] | {"milliseconds": 0}
    assert reply["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]


def test_json_is_written_without_a_thought_and_judged_at_once(thinking: Server) -> None:
    wanted = {"response_format": {"type": "json_object"}}
    reply = chat(thinking, [HARMFUL], max_tokens=4, extra_body=wanted)
    assert reply["mars"]["position"] == "prompt" and reply["mars"]["alpha"] > 0
