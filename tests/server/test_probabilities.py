"""Log probabilities that requests ask for."""

from __future__ import annotations

from typing import Any

import models
import pytest
from llama_cpp import Llama
from models import DEMO

from mars_gguf import demo_model
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import ClientGone, Exchange, exchange
from mars_gguf.server.probabilities import bytes_a_token, row_by_row
from mars_gguf.server.request_types import ChatRequest, CompletionRequest


def test_row_by_row_they_are_as_at_once_and_end_when_the_client_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama = SteeredLlama(
        DEMO, vector=demo_model.VECTOR, **models.OPTIONS | {"n_ctx": 0, "logits_all": True}
    )

    def ask(**options: Any) -> Any:
        llama.reset()
        return llama.create_completion("Hello", max_tokens=8, temperature=0, logprobs=3, **options)

    def probabilities(**options: Any) -> Any:
        return ask(**options)["choices"][0]["logprobs"]

    for echo in (False, True):
        assert row_by_row(lambda e=echo: probabilities(echo=e)) == probabilities(echo=echo)
    at_once, made = Llama.logits_to_logprobs, []
    request = Exchange()
    token = exchange.set(request)

    def counting(logits: Any) -> Any:
        made.append(logits.shape)
        if len(made) == 2:
            request.client_gone.set()
        return at_once(logits)

    monkeypatch.setattr("mars_gguf.server.probabilities._at_once", counting)
    for stream in (False, True):
        made.clear()
        request.client_gone.clear()
        with pytest.raises(ClientGone):
            row_by_row(lambda s=stream: list(ask(stream=s)))
        assert made == [(llama.n_vocab(),)] * 2
    exchange.reset(token)
    llama.close()


def test_those_of_a_whole_reply_are_counted_as_they_are_made() -> None:
    llama = SteeredLlama(
        DEMO, vector=demo_model.VECTOR, **models.OPTIONS | {"n_ctx": 0, "logits_all": True}
    )
    body = CompletionRequest(prompt="Hello " * 200, logprobs=5, echo=True)
    request = Exchange(bytes_left=1000, bytes_a_token=bytes_a_token(body))
    token = exchange.set(request)
    with pytest.raises(RequestError, match="too long to be sent at once"):
        row_by_row(lambda: llama.create_completion(body.prompt, logprobs=5, echo=True))
    assert request.bytes_left > -200
    exchange.reset(token)
    llama.close()


def test_only_probabilities_that_are_asked_for_are_counted() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert bytes_a_token(ChatRequest(messages=messages)) == 0
    some = bytes_a_token(ChatRequest(messages=messages, logprobs=True, top_logprobs=20))
    assert some > 10 * bytes_a_token(ChatRequest(messages=messages, logprobs=True)) > 0
