"""Makes log probabilities a row at a time, and embeddings a text at a time, for as long as the
client waits and a reply may be.

llama-cpp-python makes those of a whole reply at once, of its prompt as well and for every token of
the vocabulary; and embeddings of all texts in one call, of every token where a model does not pool
them. A small request took minutes and gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray

from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.request_limits import most, require

# Bytes, at the least: a token and its number, a number of an embedding.
ENTRY, NUMBER = 24, 16


def bytes_a_token(body: Any) -> int:
    """Fewest bytes that the log probabilities of a token take in a reply to ``body``."""
    if not body.logprobs:
        return 0
    return ENTRY * (1 + (getattr(body, "top_logprobs", body.logprobs) or 0))


@dataclass(frozen=True)
class _Rows:
    """The log probabilities of ``logits``, [n_tokens, n_vocab], each row made when it is asked
    for."""

    logits: NDArray[Any]
    made: Callable[[NDArray[Any]], NDArray[Any]]

    def __getitem__(self, part: slice) -> _Rows:
        return _Rows(self.logits[part], self.made)

    def __iter__(self) -> Iterator[list[float]]:
        for row in self.logits:
            yield self.made(row).tolist()


@contextmanager
def row_by_row(current: Exchange) -> Iterator[None]:
    """Context manager: within it, llama-cpp-python makes log probabilities so, for ``current``.
    It calls what makes them by the name of the class, so that all models are bound to one
    request: that whose turn it is."""
    at_once = Llama.__dict__["logits_to_logprobs"]
    made_at_once = Llama.logits_to_logprobs

    def row(logits: NDArray[Any]) -> Any:
        current.require_wanted()  # to sort a row takes longer than a token
        current.spend(current.bytes_a_token)
        return made_at_once(logits)

    def rows(logits: NDArray[Any]) -> Any:
        return _Rows(logits, row) if logits.ndim > 1 else row(logits)

    Llama.logits_to_logprobs = staticmethod(rows)
    try:
        yield
    finally:
        Llama.logits_to_logprobs = at_once


class _WhileWanted(list[str]):
    """Texts that are decoded one after another, each only if somebody waits for it still."""

    def __init__(self, texts: list[str], current: Exchange) -> None:
        super().__init__(texts)
        self.current = current

    def __iter__(self) -> Iterator[str]:
        for text in super().__iter__():
            self.current.require_wanted()
            yield text


def embeddings_of(llama: SteeredLlama, given: list[str], model: str | None, to: Exchange) -> str:
    """The reply with the embeddings of the texts that are ``given``, as JSON.

    Raises RequestError for a longer one than may be sent, before it is made where that can be told,
    and for one that takes too long; ClientGone; ValueError for a text that does not fit the
    context.
    """
    texts = _WhileWanted(given, to)
    pooled = llama.pooling_type() != lib.LLAMA_POOLING_TYPE_NONE
    to.bytes_left = most("reply")
    for text in texts:
        llama.vocabulary.require_fits(text.encode(), llama.n_ctx())
        n_tokens = 1 if pooled else min(len(llama.tokenize(text.encode())), llama.n_batch)
        to.spend(n_tokens * llama.n_embd() * NUMBER)
    content = json.dumps(llama.create_embedding(texts, model))
    require("reply", len(content))
    return content
