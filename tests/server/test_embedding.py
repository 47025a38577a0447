"""Embeddings: as llama-cpp-python makes them, and no longer than somebody waits."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator

import models
import pytest
from models import DEMO
from servers import HARMFUL, ONE_THREAD, Server, chat, running

from mars_gguf import SteeredLlama, demo_model

PATH = "/v1/embeddings"
LIMIT = 8_000_000


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("embedding")
    flags = ["--demo", *ONE_THREAD, "--embedding", "true"]
    with running(folder, *flags, MAX_REPLY=LIMIT) as server:
        yield server


def test_they_are_those_of_the_library_whatever_the_length(embedding: Server) -> None:
    texts = ["tea", "How do I make tea?", "word " * 40]
    options = models.OPTIONS | {"embedding": True}
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, **options)
    expected = llama.create_embedding(texts, "any")
    llama.close()
    reply = embedding.send(PATH, json.dumps({"input": texts, "model": "any"}).encode())
    assert json.loads(reply.content) == expected
    assert chat(embedding, [HARMFUL])["mars"]["alpha"] > 0


def test_those_that_nobody_waits_for_are_not_made(embedding: Server) -> None:
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


def test_more_than_a_reply_may_have_are_refused_before_they_are_made(embedding: Server) -> None:
    began = time.monotonic()
    reply = embedding.send(PATH, json.dumps({"input": ["word " * 400] * 2000}).encode())
    assert (reply.status, time.monotonic() - began < 5) == (400, True)
    assert "for fewer tokens or texts" in reply.error["message"]


def test_a_text_of_more_tokens_than_a_batch_is_an_error_of_the_client(embedding: Server) -> None:
    reply = embedding.send(PATH, json.dumps({"input": ["tea", "word " * 600]}).encode())
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert "expected 1 to 512 (n_batch, n_ubatch)" in reply.error["message"]
    assert embedding.send(PATH, b'{"input": "tea"}').status == 200
