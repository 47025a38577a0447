"""The runs that a prompt is made of: text tokens, and pieces of media as libmtmd cut them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mars_gguf.modalities import TEXT


@dataclass(frozen=True, eq=False)
class Chunk:
    """One run of a prompt.

    modality: its row in mars_gguf.modalities, by name.
    n_tokens: cells of the context that it takes.
    n_positions: positions that it takes; with M-RoPE, a picture takes fewer than cells.
    identity: equal if and only if the content is: the tokens, or the hash of a medium and the
        number of its slice.
    tokens: those of a text; () of a medium.
    pointer: a medium as libmtmd takes it, None of a text.
    picture: which of the prompt's pictures a medium belongs to, from 0.
    """

    modality: str
    n_tokens: int
    n_positions: int
    identity: Any
    tokens: tuple[int, ...] = ()
    pointer: Any = None
    picture: int = -1

    @property
    def is_text(self) -> bool:
        return self.modality == TEXT.name

    def after(self, n: int) -> Chunk:
        """The rest of a text after its first ``n`` tokens."""
        return text_chunk(self.tokens[n:])


def text_chunk(tokens: Sequence[int]) -> Chunk:
    """A run of text tokens."""
    tokens = tuple(tokens)
    return Chunk(TEXT.name, len(tokens), len(tokens), tokens, tokens)


def n_alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))
