"""Read the state of a prompt's last token while it is evaluated, put another in its place, and
prove that a model can be steered so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.model import TappedLlama, logits
from mars_gguf.runtime.tap import LayerOutput, Rows
from mars_gguf.steering import Decision, decide, steering_vector
from mars_gguf.vectors import Vector

if TYPE_CHECKING:
    from mars_gguf.runtime.llama import SteeredLlama

ROUNDING = 0.04  # of t; up to 0.02 was seen (135M model, Q4_1)
LEAST_ALIKE = 0.5  # correlation of logits


def eval_seen(
    llama: TappedLlama, layer: int, tokens: Sequence[int], see: Callable[[Rows], Rows | None]
) -> list[Rows]:
    """Evaluate at most one batch of tokens. ``see`` is given the state of the last one after block
    ``layer``, [n_embd], and may return another to take its place: then what stands there afterwards
    is returned."""
    n_seen, n_expected = 0, -1
    after: list[Rows] = []

    def visit(output: LayerOutput) -> None:
        nonlocal n_seen, n_expected
        if output.n_rows > len(tokens):
            raise ModelError(
                f"l_out-{layer} has {output.n_rows} rows for {len(tokens)} tokens, expected at "
                "most one for each: this architecture's residual stream cannot be steered."
            )
        if n_expected < 0:
            # After the last block, most models go on with the rows that have outputs alone.
            every_row = output.n_rows == min(len(tokens), lib.llama_n_ubatch(llama.ctx))
            n_expected = len(tokens) if every_row else 1
        n_seen += output.n_rows
        if output.n_rows and n_seen == n_expected:
            last = output.n_rows - 1
            changed = see(output.read(last)[0])
            if changed is not None:
                output.write(last, changed[None])
                after.append(output.read(last)[0])
            llama.tap.done()

    with llama.tap.visiting([layer], visit):
        Llama.eval(llama, tokens)
    return after


def judge(vector: Vector, row: Rows, modality: str) -> Decision:
    """How strongly to steer a prompt whose last token has the state ``row`` [n_embd]. A film is
    judged as pictures are by a vector that was measured on no films.

    Raises ModelError for a modality that was not measured, SteeringError for a state that is not
    finite.
    """
    measured = vector.geometry.spreads
    if modality == "video" and modality not in measured:
        modality = "image"
    if modality not in measured:
        raise ModelError(
            f"the prompt has media ({modality}), but the vector was measured on "
            f"{', '.join(vector.modalities)} only. Convert with --mmproj."
        )
    try:
        return decide(row, vector.geometry, modality)
    except FloatingPointError as error:
        raise SteeringError(f"{error}. Nothing was generated.") from error


def require_moved(vector: Vector, before: Rows, after: list[Rows], alpha: float) -> None:
    """Raise SteeringError unless the hidden state moved along the direction by about alpha: some
    builds of llama.cpp ignored a changed control vector without a word, and a device's memory need
    not take what is written to it."""
    if not after:
        raise SteeringError(f"the probe did not see l_out-{vector.layer} when steered")
    g = vector.geometry
    moved = float((after[-1] - before) @ g.unit) / g.distance
    expected = alpha / g.distance
    # Alone and in a batch, a token's state differs by rounding.
    if not abs(moved - expected) <= 0.5 * expected + ROUNDING:
        raise SteeringError(
            f"steering by alpha = {alpha:.4g} moved the hidden state by {moved:.3g} D, "
            f"expected {expected:.3g} D: this llama.cpp does not let it be changed."
        )


def require_steerable(llama: TappedLlama, layer: int) -> None:
    """Decode three tokens, together and the last one alone: the graph must have a residual stream
    after block ``layer``, of one row a token, and the logits must be the same but for rounding, as
    they are not where tokens see later ones, or where llama.cpp has a fault. The memory is empty
    afterwards. Raises ModelError."""
    size = llama.n_vocab()
    tokens = [max(llama.token_bos(), 0), size // 3, size // 2][: llama.n_batch]

    def last_logits(*runs: list[int]) -> Rows:
        llama.reset()
        lib.llama_memory_clear(lib.llama_get_memory(llama.ctx), True)
        for run in filter(None, runs):
            states: list[Rows] = []
            eval_seen(llama, layer, run, states.append)
            if not states:
                raise SteeringError(
                    f"l_out-{layer} was not seen: found no such node in the graph, expected the "
                    f"residual stream after block {layer}"
                )
        return logits(llama)

    try:
        together, alone = last_logits(tokens), last_logits(tokens[:-1], tokens[-1:])
        with np.errstate(all="ignore"):
            alike = float(np.corrcoef(together, alone)[0, 1])
        if alike < LEAST_ALIKE:  # not where they are NaN
            raise SteeringError(
                f"the logits after three tokens decoded together, and after the last one decoded "
                f"alone, correlate by {alike:.2f}, expected 1.00: this llama.cpp computes the one "
                "otherwise than the other"
            )
    except (SteeringError, ModelError) as error:
        raise ModelError(
            f"{llama.model_path}: this model ({llama.metadata.get('general.architecture', '')}) "
            f"cannot be steered: {error}"
        ) from error
    finally:
        llama.reset()
        lib.llama_memory_clear(lib.llama_get_memory(llama.ctx), True)


def self_test(llama: SteeredLlama) -> None:
    """Decode a few tokens plainly and steered, so that a model which cannot be probed or steered is
    refused when it is loaded, not in the middle of a chat. Raises ModelError."""
    llama._evaluating = True
    try:
        require_steerable(llama, llama.vector.layer)
    finally:
        llama._evaluating = False
    vector, token = llama.vector, max(llama.token_bos(), 0)
    push = steering_vector(vector.geometry, vector.geometry.distance)
    states: list[Rows] = []

    def first(change: Callable[[Rows], Rows | None] = lambda row: None) -> Rows:
        llama.take_back(0)
        llama.reset()
        llama._evaluating = True
        states.clear()

        def see(row: Rows) -> Rows | None:
            states.append(row)
            return change(row)

        try:
            eval_seen(llama, vector.layer, [token], see)
        finally:
            llama._evaluating = False
        if not states:
            raise SteeringError(f"l_out-{vector.layer} was not seen")
        return logits(llama)

    try:
        plain = first()
        before = states[0]
        if llama.way == "inline":
            steered = first(lambda row: row + push)
        else:
            with llama.control_vector.applied(vector.layer, push):
                steered = first()
            require_moved(vector, before, states, vector.geometry.distance)
        if np.array_equal(plain, steered, equal_nan=True):
            raise SteeringError("a changed hidden state changes nothing")
        if not np.array_equal(plain, first(), equal_nan=True):
            raise SteeringError("what was steered once stays steered")
        llama.take_back(0)
        llama.eval([token])
        llama.sample(temp=0.0)
        if llama.last_steering is None:
            raise SteeringError("llama-cpp-python sampled a token in a way that is not hooked")
    except (SteeringError, RuntimeError) as error:
        raise ModelError(
            f"{llama.model_path}: this model ({llama.fingerprint.architecture}) cannot be "
            f"steered at block {vector.layer}: {error}"
        ) from error
    llama.reset()
    llama.take_back(0)
    llama.last_steering = None
