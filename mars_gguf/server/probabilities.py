"""Makes log probabilities a row at a time, for as long as the client waits.

llama-cpp-python makes those of a whole reply at once, of its prompt as well and for every token of
the vocabulary: gigabytes, three times over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from llama_cpp import Llama
from numpy.typing import NDArray

from mars_gguf.server.exchange import require_wanted

T = TypeVar("T")

_at_once = Llama.logits_to_logprobs


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
