"""The marks that stand for media among the token ids of a context."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mars_gguf import modalities
from mars_gguf.modalities import MEDIA
from mars_gguf.runtime.chunks import Chunk

Ids = npt.NDArray[np.intc]


class Marks:
    """The media that a context shows.

    Every position of a medium holds the same negative number, so that no prefix of text tokens ever
    matches it. The remainder of that number says the medium's modality.

    shown: identities of media by their marks; None of one that is not known.
    """

    def __init__(self) -> None:
        self.shown: dict[int, Any] = {}

    @property
    def modality(self) -> str:
        """The modality of the context, by the media that it shows."""
        return modalities.of(map(_modality, self.shown))

    def add(self, modality: str, identity: Any) -> int:
        """A new mark for a medium."""
        mark = 0
        while mark == 0 or mark in self.shown:
            # At random, lest a state of another process holds the same mark of another picture.
            mark = -len(MEDIA) * (1 + secrets.randbelow(1 << 29)) - MEDIA.index(modality)
        self.shown[mark] = identity
        return mark

    def read(self, ids: Ids, shown: Mapping[int, Any]) -> None:
        """Take the marks from the ``ids`` of a context, and identities from ``shown``: what that
        does not tell is no picture that is shown again."""
        self.shown = {mark: shown.get(mark) for mark in ids[ids < 0].tolist()}

    def stand_for(self, chunk: Chunk, ids: Ids) -> bool:
        """Whether ``ids``, as many positions as the medium ``chunk`` takes, show it."""
        if len(ids) < chunk.n_positions or (ids != ids[0]).any():
            return False
        mark = int(ids[0])
        same = mark < 0 and _modality(mark) == chunk.modality
        return same and self.shown.get(mark) == chunk.identity


def _modality(mark: int) -> str:
    return MEDIA[-mark % len(MEDIA)]
