"""The memory of a model: its cells by sequence and position, how far it can be rewound, and
snapshots of the part that cannot.

Recurrent memory holds nothing but its last state, and sliding windows let go of what has left them.
llama.cpp copies that part alone, without the rest of the cache (PARTIAL_ONLY in include/llama.h).
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import SteeringError

MAX_SNAPSHOTS = 4
MAX_BYTES = 256 << 20  # of all together; the newest is kept whatever it takes
_PARTIAL = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


class Checkpoint(NamedTuple):
    """A position that sequence 0 can be made to end at again. ``snapshot``: what has to be put back
    for it, None where the cells are still there; of the ``whole`` memory, with the checkpoints that
    were ``kept``, or of the part that cannot be rewound."""

    position: int
    snapshot: Any = None
    whole: bool = False
    kept: tuple[Any, ...] = ()


class Memory:
    """The memory of the context of ``llama``, whichever that is by now, and the newest few
    checkpoints of it."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._kept: list[Checkpoint] = []  # positions rise
        self._in_order = True  # windows let go of the earliest positions first

    @property
    def handle(self) -> Any:
        """The memory as llama.cpp takes it."""
        return lib.llama_get_memory(self._llama.ctx)

    @property
    def n_held(self) -> int:
        """Positions of sequence 0 up to its end."""
        return int(lib.llama_memory_seq_pos_max(self.handle, 0)) + 1

    @property
    def first_held(self) -> int:
        """The first position of sequence 0 of which every layer holds something."""
        return int(lib.llama_memory_seq_pos_min(self.handle, 0))

    @property
    def rewinds(self) -> bool:
        """Whether single tokens can be taken back: not from recurrent or hybrid memory."""
        model = self._llama.model
        return not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))

    @property
    def rewinds_far(self) -> bool:
        """Whether any number of tokens can be taken back: not where the memory lets go of what has
        left sliding windows either, or has, as one of full size does once it was restored."""
        whole = self.window == 0 or (self._full_size and self.first_held <= 0)
        return self.rewinds and whole

    @property
    def lets_go(self) -> bool:
        """Whether an evaluation may leave no way back to where it began, but for a snapshot."""
        return not self.rewinds_far or (self.window > 0 and not self._in_order)

    @property
    def _full_size(self) -> bool:
        return bool(self._llama.context_params.swa_full)

    @property
    def window(self) -> int:
        """Tokens that the sliding windows span, 0 without such."""
        return int(lib.llama_model_n_swa(self._llama.model))

    # Ways back -----------------------------------------------------------------------------------

    def nearest(self, position: int) -> Checkpoint:
        """The last position up to ``position`` where sequence 0 can be made to end."""
        if self.n_held - 1 < position or self.rewinds_far:
            return Checkpoint(position)
        # A cell that has left the windows is used again when another is needed.
        held = self.first_held <= max(0, position - self.window)
        if held and self._in_order and self.rewinds:
            return Checkpoint(position)
        return next((c for c in reversed(self._kept) if c.position <= position), Checkpoint(0))

    def whole(self, position: int) -> Checkpoint:
        """A checkpoint of all of sequence 0, which ends at ``position``, however it is changed."""
        return Checkpoint(position, self.snapshot(whole=True), True, tuple(self._kept))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Make sequence 0 end where it did at ``checkpoint``."""
        if checkpoint.whole or checkpoint.position == 0:
            lib.llama_memory_clear(self.handle, True)
        if checkpoint.snapshot is not None and checkpoint.position > 0:
            size, flags = len(checkpoint.snapshot), 0 if checkpoint.whole else _PARTIAL
            context, data = self._llama.ctx, checkpoint.snapshot
            if lib.llama_state_seq_set_data_ext(context, data, size, 0, flags) != size:
                raise SteeringError("llama.cpp could not restore the state of the memory")
            self._in_order = False
        if checkpoint.whole:
            self._kept = list(checkpoint.kept)
        elif checkpoint.position > 0:
            self._cut(checkpoint.position)

    def _cut(self, position: int) -> None:
        """Remove sequence 0 from ``position`` on. Raises SteeringError if llama.cpp refuses, or if
        a part of the sliding windows that end there is gone, although they are of full size."""
        shrinks = self.n_held > position
        cut = lib.llama_memory_seq_rm(self.handle, 0, position, -1)
        if cut and shrinks and self.window > 0 and self._full_size:
            cut = 0 <= self.first_held <= max(0, position + 1 - self.window)
        if not cut:
            raise SteeringError(f"llama.cpp could not rewind the context to position {position}")

    def size(self, *, whole: bool = False) -> int:
        """Bytes of a `snapshot`."""
        flags = 0 if whole else _PARTIAL
        return int(lib.llama_state_seq_get_size_ext(self._llama.ctx, 0, flags))

    def snapshot(self, *, whole: bool = False) -> Any:
        """A copy of the part of sequence 0 that cannot be rewound, or of the ``whole``."""
        size, flags = self.size(whole=whole), 0 if whole else _PARTIAL
        buffer = (ctypes.c_uint8 * size)()
        if lib.llama_state_seq_get_data_ext(self._llama.ctx, buffer, size, 0, flags) != size:
            raise SteeringError("llama.cpp could not copy the state of the memory")
        return buffer

    def note_end(self, before: int, end: int) -> None:
        """Take note that sequence 0, which ended at position ``before``, ends at ``end``."""
        if end < before:
            self._in_order = end == 0 or (self._in_order and self.first_held == 0)
        # Something else may stand at later positions from now on.
        self._kept = [checkpoint for checkpoint in self._kept if checkpoint.position <= end]

    def forget(self) -> None:
        """Take note that the memory was replaced: its cells may lie anywhere."""
        self._in_order, self._kept = False, []

    def keep(self, position: int) -> None:
        """Keep a checkpoint of ``position``, the end of sequence 0; the oldest make room for it."""
        if self.kept_positions[-1:] == [position]:
            return
        self._kept.append(Checkpoint(position, self.snapshot()))
        while len(self._kept) > 1 and (
            len(self._kept) > MAX_SNAPSHOTS or self.kept_bytes > MAX_BYTES
        ):
            del self._kept[0]

    @property
    def kept_positions(self) -> list[int]:
        """The positions of the checkpoints that are kept, rising."""
        return [checkpoint.position for checkpoint in self._kept]

    @property
    def kept_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(len(checkpoint.snapshot) for checkpoint in self._kept)
