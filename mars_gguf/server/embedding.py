"""Makes embeddings for as long as the client waits and the settings allow.

llama-cpp-python makes those of all texts in one call, and of every token where a model does not
pool them: a small request took minutes and gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from llama_cpp import llama_cpp as lib

from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.exchange import current_exchange, require_wanted

NUMBER = 16  # bytes that a number commonly takes in a reply, at the least


class _WhileWanted(list[str]):
    """Texts that are decoded one after another, each only if somebody waits for it still."""

    def __iter__(self) -> Iterator[str]:
        for text in super().__iter__():
            require_wanted()
            yield text


def embeddings_of(llama: SteeredLlama, texts: list[str], model: str | None, most: int) -> str:
    """The reply with the embeddings of ``texts``, as JSON of at most ``most`` bytes.

    Raises RequestError for a longer one, before it is made where that can be told, and for one that
    takes too long; ClientGone; ValueError for a text that does not fit the context.
    """
    current, texts = current_exchange(), _WhileWanted(texts)
    pooled = llama.pooling_type() != lib.LLAMA_POOLING_TYPE_NONE
    current.bytes_left = most
    for text in texts:
        llama.vocabulary.require_fits(text.encode(), llama.n_ctx())
        n_tokens = 1 if pooled else min(len(llama.tokenize(text.encode())), llama.n_batch)
        current.spend(n_tokens * llama.n_embd() * NUMBER)
    content = json.dumps(llama.create_embedding(texts, model))
    current.bytes_left = most
    current.spend(len(content))
    return content
