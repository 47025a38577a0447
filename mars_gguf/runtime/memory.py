"""The memory of a model: its cells by sequence and position, how far it can be rewound, and
snapshots of the part that cannot.

Recurrent memory holds nothing but its last state, and sliding windows let go of what has left them.
llama.cpp copies that part alone, without the rest of the cache (PARTIAL_ONLY in include/llama.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import SteeringError

MAX_SNAPSHOTS = 4
MAX_BYTES = 256 << 20  # of all together; the newest is kept whatever it takes
_PARTIAL = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


class Memory:
    """The memory of the context of ``llama``, whichever that is by now, and the newest few
    snapshots of it by the positions that they were taken at."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._kept: list[tuple[int, Any]] = []  # positions rise
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

    def clear(self) -> None:
        """Empty all sequences."""
        lib.llama_memory_clear(self.handle, True)

    def cut(self, position: int) -> None:
        """Remove sequence 0 from ``position`` on. Raises SteeringError if llama.cpp refuses, or if
        a part of the sliding windows that end there is gone, although they are of full size."""
        shrinks = self.n_held > position
        cut = lib.llama_memory_seq_rm(self.handle, 0, position, -1)
        if cut and shrinks and self.window > 0 and self._full_size:
            cut = 0 <= self.first_held <= max(0, position + 1 - self.window)
        if not cut:
            raise SteeringError(f"llama.cpp could not rewind the context to position {position}")

    def snapshot(self, flags: int = _PARTIAL) -> Any:
        """A copy of the part of sequence 0 that cannot be rewound; with ``flags`` 0, of all."""
        size = lib.llama_state_seq_get_size_ext(self._llama.ctx, 0, flags)
        buffer = (ctypes.c_uint8 * size)()
        if lib.llama_state_seq_get_data_ext(self._llama.ctx, buffer, size, 0, flags) != size:
            raise SteeringError("llama.cpp could not copy the state of the memory")
        return buffer

    def restore(self, snapshot: Any, flags: int = _PARTIAL) -> None:
        """Put back a `snapshot`."""
        size = len(snapshot)
        if lib.llama_state_seq_set_data_ext(self._llama.ctx, snapshot, size, 0, flags) != size:
            raise SteeringError("llama.cpp could not restore the state of the memory")

    @contextmanager
    def aside(self) -> Iterator[bool]:
        """Context manager: at its end sequence 0 is as it was, unless it takes more than MAX_BYTES.
        Yields whether it will be."""
        fits = lib.llama_state_seq_get_size_ext(self._llama.ctx, 0, 0) <= MAX_BYTES
        whole, kept = self.snapshot(0) if fits else None, self._kept
        yield fits
        if whole is not None:
            self.clear()
            self.restore(whole, 0)
            self._kept = kept
            self.forget_order()

    def note_end(self, before: int, end: int) -> None:
        """Take note that sequence 0, which ended at position ``before``, ends at ``end``."""
        if end < before:
            self._in_order = end == 0 or (self._in_order and self.first_held == 0)
        # Something else may stand at later positions from now on.
        self._kept = [(at, snapshot) for at, snapshot in self._kept if at <= end]

    def forget_order(self) -> None:
        """Take note that the cells may lie anywhere: they were restored."""
        self._in_order = False

    def nearest(self, position: int) -> tuple[int, Any]:
        """The last position up to ``position`` where sequence 0 can be made to end, and the
        snapshot that is needed for it, None if none is."""
        if self.n_held - 1 < position or self.rewinds_far:
            return position, None
        # A cell that has left the windows is used again when another is needed.
        held = self.first_held <= max(0, position - self.window)
        if held and self._in_order and self.rewinds:
            return position, None
        kept = [(at, snapshot) for at, snapshot in self._kept if at <= position]
        return kept[-1] if kept else (0, None)

    def keep(self, position: int) -> None:
        """Keep a snapshot of ``position``, the end of sequence 0; the oldest make room for it."""
        if self.snapshot_positions[-1:] == [position]:
            return
        self._kept.append((position, self.snapshot()))
        while len(self._kept) > 1 and (
            len(self._kept) > MAX_SNAPSHOTS or self.snapshot_bytes > MAX_BYTES
        ):
            del self._kept[0]

    def drop_snapshots(self) -> None:
        """Let go of all snapshots."""
        self._kept = []

    @property
    def snapshot_positions(self) -> list[int]:
        """The positions of the snapshots, rising."""
        return [at for at, _ in self._kept]

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of all snapshots."""
        return sum(len(snapshot) for _, snapshot in self._kept)
