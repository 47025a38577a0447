"""Reads the hidden states of the last token that is evaluated, at chosen blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.context import Context
from mars_gguf.runtime.tap import LayerOutput, Rows, Tap

See = Callable[[int, Rows], Rows | None]
"""Given a block and the state of the last token after it, [n_embd]; may return another state to put
in its place."""


class Reader:
    """The states at the end of a context, each read once.

    states: by block, [n_embd], as they were before anything was pushed. end: the position that they
        were read at the end of, -1 where nothing is known.
    """

    def __init__(self, llama: Llama, tap: Tap, context: Context) -> None:
        self.llama, self.tap, self.context = llama, tap, context
        self.forget()

    def forget(self) -> None:
        """Let go of what was read: the context ends elsewhere now."""
        self.states: dict[int, Rows] = {}
        self.end = -1

    def knows(self, blocks: Sequence[int]) -> bool:
        """Whether the states of the end of the context were read after all ``blocks``."""
        at_end = self.end == self.context.n_tokens
        return not blocks or (at_end and self.states.keys() >= set(blocks))

    def pass_over(self, tokens: Sequence[int]) -> None:
        """Evaluate ``tokens`` and read nothing, as ``Llama.eval``."""
        with nullcontext() if self.tap.compiled else interrupts_held():
            Llama.eval(self.llama, tokens)

    def evaluate(
        self, tokens: list[int], blocks: Sequence[int], change: See | None = None
    ) -> dict[int, Rows]:
        """Evaluate ``tokens``, read the states of the last one after ``blocks``, and put in their
        place what ``change`` makes of them: that is returned as it stands there afterwards.

        After an error the context is as it was. Raises SteeringError for a block that was not seen.
        """
        self.forget()
        states: dict[int, Rows] = {}
        start, most = self.context.n_tokens, self.llama.n_batch
        last = (len(tokens) - 1) // most * most

        def see(block: int, row: Rows) -> Rows | None:
            states[block] = row
            return None if change is None else change(block, row)

        try:
            if last:
                self.pass_over(tokens[:last])
            after = eval_seen(self.llama, self.tap, blocks, tokens[last:], see)
        except BaseException:
            self.llama.n_tokens = start
            raise
        self.states, self.end = states, start + len(tokens)
        return after


def eval_seen(
    llama: Llama, tap: Tap, blocks: Sequence[int], tokens: Sequence[int], see: See
) -> dict[int, Rows]:
    """Evaluate at most one batch of tokens. ``see`` is given the state of the last one after each
    of ``blocks``; where it returns another, what stands there afterwards is returned. Raises
    SteeringError for a block that was not seen."""
    n_seen, n_expected = dict.fromkeys(blocks, 0), dict.fromkeys(blocks, -1)
    after: dict[int, Rows] = {}
    waiting = set(blocks)

    def visit(output: LayerOutput) -> None:
        block = output.layer
        if output.n_rows > len(tokens):
            raise ModelError(
                f"l_out-{block} has {output.n_rows} rows for {len(tokens)} tokens, expected at "
                "most one for each: this architecture's residual stream cannot be steered."
            )
        if n_expected[block] < 0:
            # After the last block, most models go on with the rows that have outputs alone.
            every_row = output.n_rows == min(len(tokens), lib.llama_n_ubatch(llama.ctx))
            n_expected[block] = len(tokens) if every_row else 1
        n_seen[block] += output.n_rows
        if output.n_rows and n_seen[block] == n_expected[block]:
            last = output.n_rows - 1
            changed = see(block, output.read(last)[0])
            if changed is not None:
                output.write(last, changed[None])
                after[block] = output.read(last)[0]
            waiting.discard(block)
            if not waiting:
                tap.done()

    with tap.visiting(blocks, visit):
        Llama.eval(llama, tokens)
    if waiting:
        raise SteeringError(
            f"l_out-{min(waiting)} was not seen: found no such node in the graph, expected the "
            f"residual stream after block {min(waiting)}"
        )
    return after


def logits(llama: Llama, index: int = -1) -> Rows:
    """Logits of the last decoded token, or of another one of the last batch, a copy, [n_vocab]."""
    pointer = lib.llama_get_logits_ith(llama.ctx, index)
    return np.ctypeslib.as_array(pointer, (llama.n_vocab(),)).copy()
