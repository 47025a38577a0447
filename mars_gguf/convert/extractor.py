"""The interface between a conversion and the model that it measures, and how prompts are observed.

Shapes: n prompts, L blocks, d = n_embd, V = n_vocab.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mars_gguf.convert.prompts import Preamble, Prompt, Push, Rows
from mars_gguf.vectors import ModelFingerprint

Advance = Callable[[int], object]
Say = Callable[[str], object]
"""Is called with what a user should know meanwhile, a line at a time."""
Read = Callable[[Sequence[Prompt], Rows], Rows]
Tokens = npt.NDArray[np.intp]


class Opening(NamedTuple):
    """The beginning of a greedy reply, or of its answer where a thought goes before."""

    token: int
    text: str


class Session(Protocol):
    """Some prompts, decoded up to their last tokens."""

    def observe(self) -> tuple[Rows, Rows]:
        """Reads the hidden states of the last tokens after every block, [n, L, d], and the logits
        of the first token of the reply, [n, V]."""

    def replies(self, n_tokens: int) -> list[Opening]:
        """Generates the first ``n_tokens`` tokens of the greedy replies."""

    def steered_replies(self, pushes: Sequence[Push], n_tokens: int) -> Iterable[list[Opening]]:
        """Generates these replies for each push, which is added at the last token of the prompt."""


class Extractor(Protocol):
    """A model that can be measured."""

    n_layer: int
    n_embd: int
    fingerprint: ModelFingerprint

    @property
    def answers_later(self) -> bool:
        """Whether a thought comes between a prompt and the answer to it."""

    def takes(self, context: Preamble) -> bool:
        """Tells whether the chat template writes what stands in ``context`` before a prompt."""

    def sessions(self, prompts: Sequence[Prompt]) -> Iterable[tuple[list[int], Session]]:
        """Yields sessions that together hold all ``prompts``, each with the indices of its own."""


@dataclass(frozen=True)
class Observations:
    """Holds what was seen of n prompts.

    states: hidden states [n, L, d], or what a reader made of them, [n, ...].
    tokens: the first of each reply, [n]. replies: none where they were not asked for.
    """

    prompts: list[Prompt]
    states: Rows
    tokens: Tokens
    replies: list[Opening]

    def where(self, keep: npt.NDArray[np.bool_]) -> Observations:
        """Chooses the prompts for which ``keep`` [n] is true."""
        kept = np.flatnonzero(keep)
        return Observations(
            [self.prompts[i] for i in kept],
            self.states[kept],
            self.tokens[kept],
            [self.replies[i] for i in kept] if self.replies else [],
        )

    def parts(self, sizes: Sequence[int]) -> list[Observations]:
        """Divides the prompts in the first so many, so many after them, ..."""
        ends = np.cumsum(sizes).tolist()
        return [
            Observations(self.prompts[a:b], self.states[a:b], self.tokens[a:b], self.replies[a:b])
            for a, b in zip([0, *ends], ends, strict=False)
        ]


class Observation(NamedTuple):
    """Holds what was seen of one prompt; its reply is without text where none was asked for."""

    state: Rows
    token: int
    reply: Opening


class Store(Protocol):
    """Keeps what was seen, so that an interrupted conversion goes on where it stopped."""

    def find(self, keys: Sequence[str]) -> dict[str, Observation]:
        """Returns those of the keys that are kept."""

    def keep(self, seen: Mapping[str, Observation]) -> None:
        """Keeps what was seen."""


def observe(
    extractor: Extractor,
    prompts: Sequence[Prompt],
    advance: Advance,
    *,
    n_tokens: int = 0,
    read: Read | None = None,
    store: Store | None = None,
    stage: str = "states",
) -> Observations:
    """Observes ``prompts``.

    advance: is told how many more were seen.
    n_tokens: so many tokens of their replies are read, too.
    read: is given a few prompts and their hidden states [k, L, d] at a time; what it makes of them
        is kept in their place, so that many prompts need little memory.
    store: what it holds is not observed again. stage: the name there of how states are read.
    """
    seen: dict[int, Observation] = {}
    keys: list[str] = []
    if store is not None:
        keys = [_key(prompt, n_tokens, stage) for prompt in prompts]
        found = store.find(keys)
        seen = {i: found[key] for i, key in enumerate(keys) if key in found}
        advance(len(seen))
    missing = [i for i in range(len(prompts)) if i not in seen]
    for chosen, session in extractor.sessions([prompts[i] for i in missing]):
        indices = [missing[i] for i in chosen]
        states, logits = session.observe()
        rows = states if read is None else read([prompts[i] for i in indices], states)
        tokens = logits.argmax(-1).tolist()
        replies = [Opening(t, "") for t in tokens]
        if n_tokens or extractor.answers_later:
            replies = session.replies(n_tokens or 1)
            tokens = [reply.token for reply in replies]
        fresh = dict(zip(indices, map(Observation, rows, tokens, replies), strict=True))
        if store is not None:
            store.keep({keys[i]: one for i, one in fresh.items()})
        seen |= fresh
        advance(len(indices))
    ordered = [seen[i] for i in range(len(prompts))]
    return Observations(
        list(prompts),
        np.stack([one.state for one in ordered])
        if ordered
        else np.empty((0, extractor.n_layer, extractor.n_embd), np.float32),
        np.asarray([one.token for one in ordered], np.intp),
        [one.reply for one in ordered] if n_tokens else [],
    )


def _key(prompt: Prompt, n_tokens: int, stage: str) -> str:
    """Names what was asked, and how much was read and how."""
    context = [dict(m) for m in prompt.context.messages]
    shown = [prompt.text, prompt.medium, context, n_tokens, stage]
    digest = hashlib.sha256(json.dumps(shown).encode())
    for image in prompt.images:
        digest.update(f"{image.size} {image.mode}".encode() + image.tobytes())
    return digest.hexdigest()
