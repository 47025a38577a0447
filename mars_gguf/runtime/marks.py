"""The marks that stand for media among the token ids of a context."""

from __future__ import annotations

import secrets
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
        self._starts: list[tuple[int, str]] = []  # where each medium begins, and its modality

    @property
    def modality(self) -> str:
        """The modality of the context, by the media that it shows."""
        return modalities.of(modality for _, modality in self._starts)

    def add(self, start: int, modality: str, identity: Any) -> int:
        """A new mark for a medium that begins at position ``start``."""
        mark = 0
        while mark == 0 or mark in self.shown:
            # At random, lest a state of another process holds the same mark of another picture.
            mark = -len(MEDIA) * (1 + secrets.randbelow(1 << 29)) - MEDIA.index(modality)
        self.shown[mark] = identity
        self._starts.append((start, modality))
        return mark

    def cut(self, end: int, ids: Ids) -> None:
        """Forget the media that begin at position ``end`` or later; ``ids`` are the context's."""
        self._starts = [(start, modality) for start, modality in self._starts if start < end]
        left = {int(ids[start]) for start, _ in self._starts}
        self.shown = {mark: identity for mark, identity in self.shown.items() if mark in left}

    def read(self, ids: Ids, shown: dict[int, Any]) -> None:
        """Take the marks from ``ids`` of a context that was restored, and identities from
        ``shown``."""
        starts = np.flatnonzero((ids < 0) & (np.diff(ids, prepend=0) != 0)).tolist()
        self._starts = [(start, MEDIA[-int(ids[start]) % len(MEDIA)]) for start in starts]
        # A picture of which the state does not say what it shows is no picture that is shown again.
        self.shown = {int(ids[start]): None for start in starts} | shown

    def stand_for(self, chunk: Chunk, ids: Ids) -> bool:
        """Whether ``ids``, as many positions as the medium ``chunk`` takes, show it."""
        if len(ids) < chunk.n_positions or (ids != ids[0]).any():
            return False
        mark = int(ids[0])
        same = mark < 0 and MEDIA[-mark % len(MEDIA)] == chunk.modality
        return same and self.shown.get(mark) == chunk.identity
