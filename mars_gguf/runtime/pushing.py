"""Changes the state of a prompt's last token: within the pass that evaluates it ("inline"), or by
llama.cpp's control vector ("cvec"); and proves that it moved."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.context import Context
from mars_gguf.runtime.judging import Judged, Verdict, Way
from mars_gguf.runtime.memory import Checkpoint
from mars_gguf.runtime.reading import Reader, eval_seen
from mars_gguf.runtime.tap import Rows

ROUNDING = 0.04  # of t; up to 0.02 was seen (135M model, Q4_1)


class Push:
    """Pushes the state at the end of a context along a policy's direction, one ``way`` or the
    other; what it leaves in the memory, the context remembers as steered."""

    def __init__(
        self, llama: Llama, context: Context, reader: Reader, way: Way | Literal["auto"]
    ) -> None:
        if way not in ("auto", "cvec", "inline"):
            raise ModelError(f"way: found {way!r}, expected 'auto', 'cvec' or 'inline'")
        self.llama, self.context, self.reader = llama, context, reader
        self.way: Way = "inline" if way == "auto" else way

    def in_pass(
        self, tokens: list[int], blocks: list[int], judge: Callable[[Mapping[int, Rows]], Verdict]
    ) -> tuple[Verdict, float]:
        """Evaluate ``tokens``, judge the states of the last one after ``blocks`` and push the one
        that is chosen, all in one pass; in a second one if a block before the last is chosen.
        Returns the verdict, and the seconds that it took. Raises SteeringError if the state did not
        move."""
        states: dict[int, Rows] = {}
        found: list[tuple[Verdict, float]] = []

        def change(block: int, row: Rows) -> Rows | None:
            states[block] = row
            if block != blocks[-1]:
                return None
            began = time.perf_counter()
            verdict = judge(states)
            found.append((verdict, time.perf_counter() - began))
            return self._pushed(verdict.chosen, block, row, self.context.n_tokens + size - 1)

        size = len(tokens[(len(tokens) - 1) // self.llama.n_batch * self.llama.n_batch :])
        after = self.reader.evaluate(tokens, blocks, change)
        chosen = found[0][0].chosen
        if chosen.opens and chosen.policy.block != blocks[-1]:
            self.again(chosen)
        elif chosen.opens:
            require_moved(chosen, states[blocks[-1]], after)
        return found[0]

    def again(self, chosen: Judged) -> None:
        """Take the end of the context back and evaluate it again, pushed as was ``chosen``. Raises
        SteeringError if the state did not move."""
        before = self.reader.states[chosen.policy.block]
        with self.context.evaluating():
            if self.way == "cvec":
                after = self._under_control_vector(chosen)
            else:
                assert self.context.before is not None
                tokens = self.context.tokens[self.context.before.position :]
                end = self.context.n_tokens - 1
                self.context.restore(self.context.before)
                after = self.reader.evaluate(
                    tokens,
                    [chosen.policy.block],
                    lambda block, row: self._pushed(chosen, block, row, end),
                )
        require_moved(chosen, before, after)

    def _pushed(self, chosen: Judged, block: int, row: Rows, position: int) -> Rows | None:
        if not chosen.opens or chosen.policy.block != block:
            return None
        self.context.note_steered(position)
        return row + chosen.push

    def _under_control_vector(self, chosen: Judged) -> dict[int, Rows]:
        """Take the last token back and decode it alone, under llama.cpp's control vector."""
        context, block = self.context, chosen.policy.block
        token = int(self.llama.input_ids[context.n_tokens - 1])
        context.restore(Checkpoint(context.n_tokens - 1))
        context.note_steered(context.n_tokens)
        after: dict[int, Rows] = {}
        with control_vector(self.llama, block, chosen.push):
            eval_seen(self.llama, self.reader.tap, [block], [token], after.__setitem__)
        return after


def require_moved(chosen: Judged, before: Rows, after: Mapping[int, Rows]) -> None:
    """Raise SteeringError unless the state of the chosen block moved along the direction by about
    alpha: some builds of llama.cpp ignored a changed control vector without a word, and a device's
    memory need not take what is written to it."""
    policy, alpha = chosen.policy, chosen.decision.alpha
    g = policy.geometry
    moved = float((after[policy.block] - before) @ g.unit) / g.distance
    expected = alpha / g.distance
    # Alone and in a batch, a token's state differs by rounding.
    if not abs(moved - expected) <= 0.5 * expected + ROUNDING:
        raise SteeringError(
            f"steering by alpha = {alpha:.4g} moved the hidden state by {moved:.3g} D, "
            f"expected {expected:.3g} D: this llama.cpp does not let it be changed."
        )


@contextmanager
def control_vector(llama: Llama, block: int, vector: Rows) -> Iterator[None]:
    """Context manager: within it llama.cpp adds ``vector`` [n_embd] to the output of ``block`` for
    every token that ``llama`` decodes. Raises ModelError for another shape or block, SteeringError
    if llama.cpp refuses."""
    n_layer, n_embd = lib.llama_model_n_layer(llama.model), llama.n_embd()
    if not 1 <= block < n_layer or vector.shape != (n_embd,):
        raise ModelError(
            f"control vector of {vector.shape} values for block {block}, expected "
            f"{n_embd} values for a block from 1 to {n_layer - 1}"
        )
    # From block 1 on; those that are not sent keep what was set before (src/llama-adapter.cpp).
    buffer = np.zeros((n_layer - 1, n_embd), np.float32)
    buffer[block - 1] = vector
    data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    try:
        _set(llama, data, buffer.size, n_embd, block, block)
        yield
    finally:
        with interrupts_held():
            _set(llama, None, 0, 0, 0, 0)


def _set(llama: Llama, *arguments: Any) -> None:
    code = lib.llama_set_adapter_cvec(llama.ctx, *arguments)
    if code != 0:
        raise SteeringError(f"llama_set_adapter_cvec returned {code}")
