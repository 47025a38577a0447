"""The embeddings of pictures that were encoded, kept for the prompts that show them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

MAX_EMBEDDINGS = 64 << 20  # bytes of encoded pictures that are kept
Embeddings = npt.NDArray[np.float32]


class Encoded:
    """The embeddings of pictures by identity: those used last, of at most MAX_EMBEDDINGS bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, int], Embeddings] = OrderedDict()
        self._keeps_all = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(embeddings.nbytes for embeddings in self._kept.values())

    def get(self, identity: tuple[bytes, int]) -> Embeddings | None:
        """Those of a picture, None if they are not kept."""
        if identity in self._kept:
            self._kept.move_to_end(identity)
        return self._kept.get(identity)

    def add(self, identity: tuple[bytes, int], embeddings: Embeddings) -> None:
        """Keep those of a picture; the ones used longest ago make room."""
        self._kept[identity] = embeddings
        self._make_room()

    @contextmanager
    def keeping_all(self) -> Iterator[None]:
        """Context manager: what is added within is kept to its end, however much that is."""
        self._keeps_all = True
        try:
            yield
        finally:
            self._keeps_all = False
            self._make_room()

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()

    def _make_room(self) -> None:
        while not self._keeps_all and self.n_bytes > MAX_EMBEDDINGS:
            self._kept.popitem(last=False)
