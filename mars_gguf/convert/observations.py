"""What a conversion needs of a model, and what it observes of prompts on it.

Shapes: n prompts, L blocks, d = n_embd, V = n_vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mars_gguf.convert.geometry import Array, raw_scores, softmax
from mars_gguf.convert.prompts import Prompt, Push, Rows
from mars_gguf.vectors import ModelFingerprint

Advance = Callable[[int], object]
K = TypeVar("K")


class Session(Protocol):
    """Some prompts, decoded up to their last tokens."""

    def observe(self) -> tuple[Rows, Rows]:
        """Hidden states of the last tokens after every block, [n, L, d], and logits of the first
        token of the reply, [n, V]."""

    def steered_each(self, pushes: Sequence[Push]) -> Iterable[Rows]:
        """For each push these logits with it."""


class Extractor(Protocol):
    """What a conversion needs of a model."""

    n_layer: int
    n_embd: int
    fingerprint: ModelFingerprint

    def sessions(
        self, prompts: Sequence[Prompt], *, again: Collection[int] = ()
    ) -> Iterable[tuple[list[int], Session]]:
        """Sessions that together hold all ``prompts``, each with the indices of those it holds.
        ``again``: the indices of those that later sessions will ask for once more."""


@dataclass(frozen=True)
class Observations:
    """Of n prompts: hidden states [n, L, d] and raw refusal scores [n] (geometry.raw_scores)."""

    prompts: list[Prompt]
    states: Rows
    raw_scores: Array

    @property
    def strata(self) -> list[str]:
        """The kind of picture and form of text of each prompt."""
        return [p.stratum for p in self.prompts]

    def where(self, keep: npt.NDArray[np.bool_]) -> Observations:
        """Those of the prompts for which ``keep`` [n] is true."""
        prompts = [p for p, kept in zip(self.prompts, keep, strict=True) if kept]
        return Observations(prompts, self.states[keep], self.raw_scores[keep])


def observe_replies(
    extractor: Extractor, prompts: Sequence[Prompt], advance: Advance
) -> tuple[Rows, Array]:
    """Hidden states [n, L, d] and mean first-token probabilities [V]."""
    states = np.empty((len(prompts), extractor.n_layer, extractor.n_embd), np.float32)
    total: Array = np.zeros(1)
    for indices, session in extractor.sessions(prompts):
        states[indices], logits = session.observe()
        total = total + softmax(logits).sum(0, dtype=np.float64)
        advance(len(indices))
    return states, total / len(prompts)


def observe(
    extractor: Extractor,
    sets: Mapping[K, Sequence[Prompt]],
    weights: Array,
    *,
    again: Collection[K],
    advance: Advance,
) -> dict[K, Observations]:
    """Observations of each of ``sets``, by name: all at once, because what several of them show
    needs to be read once. ``again``: the names of those that will be steered later."""
    prompts = [prompt for one in sets.values() for prompt in one]
    names = [name for name, one in sets.items() for _ in one]
    states = np.empty((len(prompts), extractor.n_layer, extractor.n_embd), np.float32)
    scores = np.empty(len(prompts))
    later = {i for i, name in enumerate(names) if name in again}
    for indices, session in extractor.sessions(prompts, again=later):
        states[indices], logits = session.observe()
        scores[indices] = raw_scores(logits, weights)
        advance(len(indices))
    observed, start = {}, 0
    for name, one in sets.items():
        part = slice(start, start := start + len(one))
        observed[name] = Observations(list(one), states[part], scores[part])
    return observed
