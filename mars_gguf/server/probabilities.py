"""Makes log probabilities a row at a time, for as long as the client waits.

llama-cpp-python makes those of a whole reply at once, of its prompt as well and for every token of
the vocabulary: gigabytes, three times over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from llama_cpp import Llama
from numpy.typing import NDArray

from mars_gguf.server.exchange import exchange, require_wanted

T = TypeVar("T")

ENTRY = 24  # bytes: a token and its number, at the least
_at_once = Llama.logits_to_logprobs


def bytes_a_token(body: Any) -> int:
    """Fewest bytes that the log probabilities of a token take in a reply to ``body``."""
    if not body.logprobs:
        return 0
    return ENTRY * (1 + (getattr(body, "top_logprobs", body.logprobs) or 0))


class _Rows:
    """The log probabilities of ``logits``, [n_tokens, n_vocab], each row made when it is asked
    for."""

    def __init__(self, logits: NDArray[Any]) -> None:
        self.logits = logits

    def __getitem__(self, part: slice) -> _Rows:
        return _Rows(self.logits[part])

    def __iter__(self) -> Iterator[list[float]]:
        for row in self.logits:
            yield _row(row).tolist()


def _row(logits: NDArray[Any]) -> NDArray[Any]:
    require_wanted()  # to sort a row takes longer than a token
    if (current := exchange.get()) is not None:
        current.spend(current.bytes_a_token)
    made: NDArray[Any] = _at_once(logits)
    return made


def row_by_row(call: Callable[..., T], *args: Any) -> T:
    """The result of ``call``, within which llama-cpp-python makes log probabilities so."""
    before = Llama.__dict__["logits_to_logprobs"]
    Llama.logits_to_logprobs = lambda logits: _Rows(logits) if logits.ndim > 1 else _row(logits)
    try:
        return call(*args)
    finally:
        Llama.logits_to_logprobs = before
