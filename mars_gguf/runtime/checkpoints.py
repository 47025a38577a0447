"""The part of a memory that cannot be rewound, kept at some positions of the context so that it can
be put back there.

Recurrent memory holds nothing but its last state, and sliding windows let go of what has left them.
llama.cpp copies that part alone, without the rest of the cache (PARTIAL_ONLY in include/llama.h).
"""

from __future__ import annotations

import ctypes
from typing import Any

from llama_cpp import llama_cpp as lib

from mars_gguf.errors import SteeringError

MAX_CHECKPOINTS = 4
MAX_BYTES = 256 << 20  # of all together; the newest is kept whatever it takes


class Checkpoints:
    """States of sequence 0 by position, the newest few."""

    def __init__(self) -> None:
        self._states: list[tuple[int, Any]] = []  # positions rise

    def keep(self, position: int, context: Any) -> None:
        """Keep the state at ``position``, the end of what ``context`` holds."""
        if self._states and self._states[-1][0] == position:
            return
        self._states.append((position, partial_state(context)))
        while len(self._states) > 1 and (
            len(self._states) > MAX_CHECKPOINTS or self.n_bytes > MAX_BYTES
        ):
            del self._states[0]

    def drop_beyond(self, position: int) -> None:
        """Let go of what is kept at later positions: something else may stand there from now on."""
        self._states = [(at, state) for at, state in self._states if at <= position]

    def newest(self, position: int) -> tuple[int, Any]:
        """The last kept position up to ``position``, and the state there; 0 and None if none is
        kept."""
        kept = [(at, state) for at, state in self._states if at <= position]
        return kept[-1] if kept else (0, None)

    @property
    def n_bytes(self) -> int:
        """What is kept, in bytes."""
        return sum(len(state) for _, state in self._states)


def partial_state(context: Any) -> Any:
    """The part of the memory that cannot be rewound, of sequence 0."""
    flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    size = lib.llama_state_seq_get_size_ext(context, 0, flags)
    buffer = (ctypes.c_uint8 * size)()
    if lib.llama_state_seq_get_data_ext(context, buffer, size, 0, flags) != size:
        raise SteeringError("llama.cpp could not copy the state of the memory")
    return buffer


def restore_partial_state(context: Any, buffer: Any) -> None:
    """Put back what `partial_state` returned."""
    flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    if lib.llama_state_seq_set_data_ext(context, buffer, len(buffer), 0, flags) != len(buffer):
        raise SteeringError("llama.cpp could not restore the state of the memory")
