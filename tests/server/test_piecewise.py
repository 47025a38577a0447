"""Log probabilities and embeddings: as llama-cpp-python makes them, and no longer than somebody
waits."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import models
import pytest
from llama_cpp import Llama
from models import DEMO
from servers import HARMFUL, ONE_THREAD, Server, chat, running

from mars_gguf import SteeredLlama, demo_model
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import ClientGone, RequestError
from mars_gguf.server.piecewise import bytes_a_token, row_by_row
from mars_gguf.server.request_types import ChatRequest, CompletionRequest

PATH = "/v1/embeddings"
LIMIT = 8_000_000


@pytest.fixture(scope="module")
def llama() -> Iterator[SteeredLlama]:
    options = models.OPTIONS | {"n_ctx": 0, "logits_all": True}
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, **options)
    yield llama
    llama.close()


def test_row_by_row_they_are_as_at_once_and_end_when_the_client_leaves(
    llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(**options: Any) -> Any:
        llama.reset()
        return llama.create_completion("Hello", max_tokens=8, temperature=0, logprobs=3, **options)

    for echo in (False, True):
        expected = ask(echo=echo)["choices"]
        with row_by_row(Exchange()):
            assert ask(echo=echo)["choices"] == expected
    at_once, made = Llama.logits_to_logprobs, []
    for stream in (False, True):
        made.clear()
        request = Exchange()

        def counting(logits: Any, request: Exchange = request) -> Any:
            made.append(logits.shape)
            if len(made) == 2:
                request.client_gone.set()
            return at_once(logits)

        monkeypatch.setattr(Llama, "logits_to_logprobs", staticmethod(counting))
        with pytest.raises(ClientGone), row_by_row(request):
            list(ask(stream=stream))
        assert made == [(llama.n_vocab(),)] * 2
        assert Llama.logits_to_logprobs is counting


def test_those_of_a_whole_reply_are_counted_as_they_are_made(llama: SteeredLlama) -> None:
    body = CompletionRequest(prompt="Hello " * 200, logprobs=5, echo=True)
    request = Exchange(bytes_left=1000, bytes_a_token=bytes_a_token(body))
    with pytest.raises(RequestError, match="too long to be sent at once"), row_by_row(request):
        llama.create_completion(body.prompt, logprobs=5, echo=True)
    assert request.bytes_left > -200


def test_only_probabilities_that_are_asked_for_are_counted() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert bytes_a_token(ChatRequest(messages=messages)) == 0
    some = bytes_a_token(ChatRequest(messages=messages, logprobs=True, top_logprobs=20))
    assert some > 10 * bytes_a_token(ChatRequest(messages=messages, logprobs=True)) > 0


# Embeddings --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embedding")
    flags = ["--demo", *ONE_THREAD, "--embedding", "true"]
    with running(folder, *flags, reply=LIMIT) as server:
        yield server


def test_embeddings_are_those_of_the_library_whatever_the_length(embedding: Server) -> None:
    texts = ["tea", "How do I make tea?", "word " * 40]
    options = models.OPTIONS | {"embedding": True}
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, **options)
    expected = llama.create_embedding(texts, "any")
    llama.close()
    reply = embedding.send(PATH, json.dumps({"input": texts, "model": "any"}).encode())
    assert json.loads(reply.content) == expected
    assert chat(embedding, [HARMFUL])["mars"]["alpha"] > 0


def test_embeddings_that_nobody_waits_for_are_not_made(embedding: Server) -> None:
    request_id, body = uuid.uuid4().hex, json.dumps({"input": ["a"] * 1900}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
        f"X-Request-ID: {request_id}\nContent-Length: {len(body)}\n\n"
    )
    with embedding.begin(head, body):
        time.sleep(0.5)
    left = time.monotonic()
    assert " 499 " in embedding.line(request_id)
    assert time.monotonic() - left < 2


def test_more_embeddings_than_a_reply_may_have_are_refused_before_they_are_made(
    embedding: Server,
) -> None:
    began = time.monotonic()
    reply = embedding.send(PATH, json.dumps({"input": ["word " * 400] * 2000}).encode())
    assert (reply.status, time.monotonic() - began < 5) == (400, True)
    assert "for fewer tokens or texts" in reply.error["message"]


def test_a_text_of_more_tokens_than_a_batch_is_an_error_of_the_client(embedding: Server) -> None:
    reply = embedding.send(PATH, json.dumps({"input": ["tea", "word " * 600]}).encode())
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert "expected 1 to 512 (n_batch, n_ubatch)" in reply.error["message"]
    assert embedding.send(PATH, b'{"input": "tea"}').status == 200
