"""Watches plain llama-cpp-python by an eval callback of its own, to hold the runtime against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import LogitsProcessorList

from mars_gguf.runtime.compat import ggml

Logits = npt.NDArray[np.float32]
N_REPLY = 5  # tokens of every reply


class Watched(llama_cpp.Llama):
    """A ``Llama`` that keeps the last row of ``l_out-<l>`` for the blocks ``layers``, each time it
    is computed, and adds to it once if told to. Nothing of the runtime is used but ggml's accessors
    of tensors."""

    def __init__(self, model: str, layers: Sequence[int], **kwargs: Any) -> None:
        self.wanted = {f"l_out-{layer}".encode(): layer for layer in layers}
        self.seen: list[tuple[int, Logits]] = []
        self.change: tuple[int, Logits] | None = None
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)
        super().__init__(model, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "context_params":
            value.cb_eval = self._callback
        super().__setattr__(name, value)

    def _on_node(self, tensor: int, ask: bool, _user_data: int) -> bool:
        layer = self.wanted.get(ggml.ggml_get_name(tensor))
        if ask or layer is None:
            return layer is not None
        n_rows = ggml.ggml_nrows(tensor)
        if n_rows:
            row = np.empty(ggml.ggml_nelements(tensor) // n_rows, np.float32)
            place = (n_rows - 1) * row.nbytes
            ggml.ggml_backend_tensor_get(tensor, row.ctypes.data, place, row.nbytes)
            if self.change is not None and self.change[0] == len(self.seen):
                changed = row + self.change[1]
                ggml.ggml_backend_tensor_set(tensor, changed.ctypes.data, place, row.nbytes)
            self.seen.append((layer, row))
        return True

    def prompt_rows(self, messages: list[Any]) -> dict[int, Logits]:
        """Reads the state of the last prompt token after each of the blocks."""
        return dict(self.seen[: self._before_sampling(messages)])

    def say_with(self, messages: list[Any], addition: Logits) -> Logits:
        """Replies as `say`, with ``addition`` to the last prompt token's state after the only block
        that is watched."""
        assert len(self.wanted) == 1
        self.change = self._before_sampling(messages) - 1, addition
        afresh(self)
        self.seen.clear()
        try:
            return say(self, messages)
        finally:
            self.change = None

    def _before_sampling(self, messages: list[Any]) -> int:
        """Counts how often a node is seen while the prompt is evaluated."""
        counts: list[int] = []

        def count(_ids: Any, scores: Logits) -> Logits:
            counts.append(len(self.seen))
            return scores

        afresh(self)
        self.seen.clear()
        say(self, messages, count)
        return counts[0]


def afresh(llama: llama_cpp.Llama) -> None:
    """Forgets what was evaluated."""
    llama.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)


def say(llama: llama_cpp.Llama, messages: list[Any], *processors: Any) -> Logits:
    """Reads the logits of a greedy reply of N_REPLY tokens at most, [n, n_vocab]."""
    rows: list[Logits] = []

    def keep(_ids: Any, scores: Logits) -> Logits:
        rows.append(scores.copy())
        return scores

    llama.create_chat_completion(
        messages, temperature=0.0, max_tokens=N_REPLY, repeat_penalty=1.0,
        logits_processor=LogitsProcessorList([*processors, keep]),
    )  # fmt: skip
    return np.stack(rows)
