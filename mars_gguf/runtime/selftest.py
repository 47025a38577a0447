"""Proves, when a model is loaded, that it can be read and pushed: one that cannot is refused then,
not in the middle of a chat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llama_cpp import Llama

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.judging import Judged
from mars_gguf.runtime.pushing import control_vector, require_moved
from mars_gguf.runtime.reading import eval_seen, logits, require_readable
from mars_gguf.runtime.replies import Reply
from mars_gguf.runtime.steerer import Steerer
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Decision, Policy


def self_test(llama: Llama, steerer: Steerer) -> None:
    """Decode a few tokens, plainly and pushed by each policy, and sample one. The context is empty
    afterwards. Raises ModelError for a model that cannot be read or steered so."""
    architecture = llama.metadata.get("general.architecture", "")
    if steerer.push.way == "cvec" and not steerer.context.memory.rewinds:
        raise ModelError(
            "way='cvec' decodes the last prompt token twice, which recurrent or hybrid memory "
            f"({architecture}) does not allow: use 'inline'"
        )
    if not steerer.policies:
        return
    require_readable(llama, steerer.reader.tap, steerer.context, steerer.blocks)
    for policy in steerer.policies:
        try:
            _require_pushed(llama, steerer, policy)
            _require_hooked(llama, steerer)
        except (SteeringError, RuntimeError) as error:
            raise ModelError(
                f"{llama.model_path}: this model ({architecture}) cannot be steered at block "
                f"{policy.block}: {error}"
            ) from error
    steerer.context.take_back(0)
    llama.reset()
    steerer.turns.reply = Reply()


def _require_pushed(llama: Llama, steerer: Steerer, policy: Policy) -> None:
    """Raise SteeringError unless a push by D changes what comes after it, once."""
    token, distance = max(llama.token_bos(), 0), policy.geometry.distance
    by_one = Judged(policy, Decision(0.0, 0.0, 1.0, distance))
    seen: list[Rows] = []

    def first(change: Callable[[Rows], Rows | None] = lambda row: None) -> Rows:
        steerer.context.take_back(0)
        llama.reset()

        def see(_block: int, row: Rows) -> Rows | None:
            seen.append(row)
            return change(row)

        with steerer.context.evaluating():
            eval_seen(llama, steerer.reader.tap, [policy.block], [token], see)
        return logits(llama)

    plain = first()
    if steerer.push.way == "inline":
        steered = first(lambda row: row + by_one.push)
    else:
        with control_vector(llama, policy.block, by_one.push):
            steered = first()
        require_moved(by_one, seen[0], {policy.block: seen[-1]})
    if np.array_equal(plain, steered, equal_nan=True):
        raise SteeringError("a changed hidden state changes nothing")
    if not np.array_equal(plain, first(), equal_nan=True):
        raise SteeringError("what was steered once stays steered")


def _require_hooked(llama: Llama, steerer: Steerer) -> None:
    """Raise SteeringError unless llama-cpp-python samples a token by way of the steerer."""
    steerer.context.take_back(0)
    llama.eval([max(llama.token_bos(), 0)])
    llama.sample(temp=0.0)
    if steerer.turns.reply.steering is None:
        raise SteeringError("llama-cpp-python sampled a token in a way that is not hooked")
