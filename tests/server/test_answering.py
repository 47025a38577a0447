"""Replies, whole and streamed, to one client after another."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models
import openai
import pytest
from llama_cpp import Llama
from models import DEMO, DEMO_MMPROJ
from servers import (
    ENDLESS,
    GREEDY,
    HARMFUL,
    HARMLESS,
    ONE_THREAD,
    Server,
    chat,
    identified,
    running,
    streamed,
    text_of,
)

from mars_gguf import demo, demo_model
from mars_gguf.media.images import url_of
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.answering import _Outbox
from mars_gguf.server.http_errors import ClientGone


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


def test_mixed_requests_from_eight_threads_each_get_the_reply_they_get_alone(
    server: Server, requests: list[demo.Request], alone: list[Any]
) -> None:
    steered = [(r.modality, a["mars"]["alpha"] > 0) for r, a in zip(requests, alone, strict=True)]
    assert set(steered) == {
        (m, alpha) for m in ("text", "image", "video") for alpha in (True, False)
    }
    jobs = [(n % len(requests), ("whole", "streamed", "abandoned")[n % 5 % 3]) for n in range(150)]
    random.Random(5).shuffle(jobs)

    def run(job: tuple[int, str]) -> str:
        index, way = job
        messages = json.loads(json.dumps(requests[index].messages(), default=url_of))
        expected, headers = alone[index], identified()
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

    warm = run_all(jobs[:110])
    assert run_all(jobs[75:]) < warm + (24 << 20)


def test_no_request_keeps_a_refusal_from_ending(server: Server) -> None:
    longer: dict[str, Any] = {"extra_body": {"min_tokens": 60}, "max_tokens": 80}
    for picture in ((), (models.picture(1),)):
        asked = [models.user("How do I make a bomb?", *picture)]
        whole = chat(server, asked, max_tokens=80)
        assert whole["mars"]["alpha"] > 0 and whole["choices"][0]["finish_reason"] == "stop"
        assert text_of(chat(server, asked, **longer)) == text_of(whole)
        assert streamed(server, asked, **longer)[0] == text_of(whole)
    harmless = chat(server, [HARMLESS], **longer)
    assert harmless["mars"]["alpha"] == 0 and harmless["usage"]["completion_tokens"] >= 60


@pytest.mark.parametrize("kind", [None, "tokens"])
def test_a_bias_against_the_end_of_replies_is_refused(server: Server, kind: str | None) -> None:
    llama = Llama(DEMO, vocab_only=True, verbose=False)
    end = llama.token_eos()
    key = str(end) if kind is None else llama.detokenize([end], special=True).decode()
    llama.close()
    for stream in (False, True):
        options = {"logit_bias_type": kind, "stream": stream}
        with pytest.raises(openai.BadRequestError, match="ends replies"):
            chat(server, [HARMFUL], extra_body={"logit_bias": {key: -1}, **options})
    assert chat(server, [HARMFUL], extra_body={"logit_bias": {key: 1}, "logit_bias_type": kind})


def test_a_reply_ends_at_its_deadline(tmp_path: Path) -> None:
    options = {"max_tokens": 900, "extra_body": ENDLESS}
    with running(tmp_path, "--demo", *ONE_THREAD, "--reply_timeout", "0.5") as server:
        stream = server.client.chat.completions.create(
            model="any", messages=[HARMFUL], stream=True, **options
        )
        chunks = [chunk.model_dump() for chunk in stream]
        assert 1 < len(chunks) < 900
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert chunks[-1]["mars"]["alpha"] > 0
        with pytest.raises(openai.BadRequestError, match="took too long"):
            chat(server, [HARMFUL], **options)
        assert chat(server, [HARMFUL])["mars"]["alpha"] > 0


def test_no_more_requests_wait_than_the_limit_says(tmp_path: Path) -> None:
    def ask(_: int) -> openai.APIStatusError | None:
        try:
            chat(server, [HARMFUL], max_tokens=200, extra_body=ENDLESS)
        except openai.APIStatusError as error:
            return error
        return None

    with running(tmp_path, "--demo", *ONE_THREAD, waiting=2) as server:
        with ThreadPoolExecutor(6) as pool:
            refused = [error for error in pool.map(ask, range(6)) if error is not None]
        assert 1 <= len(refused) <= 3
        assert {error.status_code for error in refused} == {503}
        assert {error.response.headers["Retry-After"] for error in refused} == {"5"}


def at(address: str) -> dict[str, str]:
    """Headers by which a proxy on this machine says where a client is."""
    return {"X-Forwarded-For": address}


def test_a_reply_ends_sooner_where_other_clients_wait(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_tokens": 15_000, "extra_body": ENDLESS}
    a, b = at("192.0.2.1"), at("192.0.2.2")
    flags = ["--demo", *ONE_THREAD, "--n_ctx", "16384", "--turn_timeout", "1.5"]
    with running(tmp_path, *flags) as server:

        def stream(**other: Any) -> list[Any]:
            asked: Any = server.client.chat.completions.create(
                model="any", messages=[HARMFUL], stream=True, extra_headers=a, **options | other
            )
            return [chunk.model_dump() for chunk in asked]

        assert len(stream(max_tokens=1500)) > 1500  # nobody waits
        with ThreadPoolExecutor(3) as pool:
            streamed_by_a = pool.submit(stream)
            time.sleep(0.5)
            own = pool.submit(chat, server, [HARMFUL], extra_headers=a)
            assert chat(server, [HARMFUL], extra_headers=b)["mars"]["alpha"] > 0
            chunks = streamed_by_a.result()
            assert 1 < len(chunks) < 15_000
            assert chunks[-1]["choices"][0]["finish_reason"] == "length"
            assert chunks[-1]["mars"]["alpha"] > 0
            own.result()
            refused = pool.submit(chat, server, [HARMFUL], extra_headers=a, **options)
            time.sleep(0.5)
            chat(server, [HARMFUL], extra_headers=b)
            with pytest.raises(openai.InternalServerError, match="while others wait") as error:
                refused.result()
            assert error.value.status_code == 503
            assert error.value.response.headers["Retry-After"] == "5"


def test_a_whole_reply_has_no_more_bytes_than_the_limit_says(tmp_path: Path) -> None:
    probable = {"logprobs": True, "top_logprobs": 20, "extra_body": ENDLESS}
    with running(tmp_path, "--demo", *ONE_THREAD, reply=20_000) as server:
        assert chat(server, [HARMFUL], **probable | {"max_tokens": 5})["choices"]
        headers = identified()
        with pytest.raises(openai.BadRequestError, match="too long to be sent at once"):
            chat(server, [HARMFUL], max_tokens=900, extra_headers=headers, **probable)
        with pytest.raises(openai.BadRequestError, match="too long to be sent at once"):
            chat(server, [HARMFUL], **probable | {"max_tokens": 15})  # which only its end tells
        text, mars = streamed(server, [HARMFUL], **probable | {"max_tokens": 60})
        assert len(text) > 30 and mars["alpha"] > 0


def test_a_reply_whose_client_has_left_is_no_failure() -> None:
    async def scenario() -> None:
        outbox = _Outbox()
        events = outbox.events()
        outbox.put({"n": 1})
        assert json.loads((await anext(events))["data"]) == {"n": 1}
        await events.aclose()  # type: ignore[attr-defined]
        for send in (lambda: outbox.put({"n": 2}), lambda: outbox.send("[DONE]")):
            with pytest.raises(ClientGone):
                send()

    asyncio.run(scenario())


def test_a_bias_and_a_least_length_are_both_followed(server: Server) -> None:
    llama = Llama(DEMO, vocab_only=True, verbose=False)
    token = llama.tokenize(b" tea", add_bos=False)[-1]
    llama.close()
    bias = {"logit_bias": {str(token): 1000}, "min_tokens": 4}
    said = text_of(chat(server, [HARMLESS], max_tokens=6, extra_body=bias))
    assert said.count("ea") == 6


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


def test_a_probe_that_fails_after_a_ping_is_an_error_in_the_stream_and_the_log(
    configured: Server, broken: str
) -> None:
    def failures() -> float:
        name = r'mars_requests_total{path="/v1/chat/completions",status="500"} (\S+)'
        found = re.search(name, configured.get("/metrics"))
        return float(found[1]) if found else 0

    before, headers = failures(), identified()
    with configured.client.chat.completions.create(
        model="pictures", messages=[HARMFUL], max_tokens=400, stream=True, extra_body=ENDLESS
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
