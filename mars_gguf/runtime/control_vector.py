"""llama.cpp's control vector."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.tap import Rows


class ControlVector:
    """The control vector of one context: it is added to the output of one block for every token."""

    def __init__(self, context: Any, n_layer: int, n_embd: int) -> None:
        self.context, self.n_layer, self.n_embd = context, n_layer, n_embd

    def set(self, layer: int, vector: Rows) -> None:
        """Add ``vector`` [n_embd] to the output of block ``layer`` for every token from now on.

        llama.cpp wants the whole buffer, [n_layer - 1, n_embd] from block 1 on: blocks that are not
        sent keep what was set before (src/llama-adapter.cpp). Raises ModelError for another shape
        or block, SteeringError if llama.cpp refuses.
        """
        if not 1 <= layer < self.n_layer or vector.shape != (self.n_embd,):
            raise ModelError(
                f"control vector of {vector.shape} values for block {layer}, expected "
                f"{self.n_embd} values for a block from 1 to {self.n_layer - 1}"
            )
        buffer = np.zeros((self.n_layer - 1, self.n_embd), np.float32)
        buffer[layer - 1] = vector
        data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        self._call(data, buffer.size, self.n_embd, layer, layer)

    @contextmanager
    def applied(self, layer: int, vector: Rows) -> Iterator[None]:
        """Context manager: as `set` within the block, as `clear` after it."""
        try:
            self.set(layer, vector)
            yield
        finally:
            with interrupts_held():
                self.clear()

    def clear(self) -> None:
        """Add nothing any more."""
        self._call(None, 0, 0, 0, 0)

    def _call(self, *arguments: Any) -> None:
        code = lib.llama_set_adapter_cvec(self.context, *arguments)
        if code != 0:
            raise SteeringError(f"llama_set_adapter_cvec returned {code}")
