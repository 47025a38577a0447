"""llama.cpp's batch (include/llama.h, llama_batch), filled by whole arrays."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llama_cpp._internals import LlamaBatch


class Batch(LlamaBatch):
    """A LlamaBatch of at most ``n_tokens`` tokens, one sequence each.

    llama-cpp-python's own is filled through five pointers for each token, which takes about as long
    as all that steering does before a first token, and spreads its sequence ids over a page each.
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__(n_tokens=n_tokens, embd=0, n_seq_max=1, verbose=False)
        held = self.batch
        self._tokens, self._positions, self._outputs = (
            np.ctypeslib.as_array(pointer, (n_tokens,))
            for pointer in (held.token, held.pos, held.logits)
        )
        self._of_sequence_0 = False

    def set_batch(self, batch: Sequence[int], n_past: int, logits_all: bool) -> None:
        """``batch`` (not empty) as the tokens of sequence 0 from position ``n_past`` on. Raises
        TypeError or OverflowError for what is no 32-bit integer."""
        tokens, n_tokens = array("i", batch), len(batch)
        if not self._of_sequence_0:
            for i in range(self._n_tokens):
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
            self._of_sequence_0 = True
        self.batch.n_tokens = n_tokens
        if n_tokens == 1:
            self._tokens[0], self._positions[0], self._outputs[0] = tokens[0], n_past, True
            return
        self._tokens[:n_tokens] = tokens
        self._positions[:n_tokens] = np.arange(n_past, n_past + n_tokens, dtype=np.intc)
        self._outputs[:n_tokens] = logits_all
        self._outputs[n_tokens - 1] = True

    @property
    def tokens(self) -> npt.NDArray[np.intc]:
        """What was filled in last, [n_tokens]."""
        return self._tokens[: self.batch.n_tokens]

    def add_sequence(self, batch: Sequence[int], seq_id: int, logits_all: bool) -> None:
        """Add the tokens of sequence ``seq_id``, from position 0 on."""
        self._of_sequence_0 = False
        super().add_sequence(batch, seq_id, logits_all)
