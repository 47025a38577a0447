"""Log probabilities that requests ask for."""

from __future__ import annotations

from typing import Any

import models
import pytest
from llama_cpp import Llama
from models import DEMO

from mars_gguf import demo_model
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.exchange import ClientGone, Exchange, exchange
from mars_gguf.server.probabilities import row_by_row


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
