"""Proves, when a model is loaded, that it can be read and pushed: one that cannot is refused then,
not in the middle of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from llama_cpp import Llama

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.reading import eval_seen, logits
from mars_gguf.runtime.replies import Reply
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Policy

LEAST_ALIKE = 0.5  # correlation of logits


def self_test(llama: Llama) -> None:
    """Decode a few tokens with a SteeredLlama, plainly and pushed by each policy, and sample one.
    The context is empty afterwards. Raises ModelError if it cannot be read or steered so."""
    steerer = llama.steerer
    if steerer.push.way == "cvec" and not llama.context.memory.rewinds:
        raise ModelError(
            "way='cvec' decodes the last prompt token twice, which recurrent or hybrid memory "
            f"({llama.metadata.get('general.architecture')}) does not allow: use 'inline'"
        )
    if not steerer.policies:
        return
    require_readable(llama, steerer.blocks)
    for policy in steerer.policies:
        with _refusing(llama, f" at block {policy.block}"):
            _require_pushed(llama, policy)
    steerer.turns.reply = Reply()


def require_readable(llama: Llama, blocks: Sequence[int]) -> None:
    """Decode three tokens, together and the last one alone: the graph must have a residual stream
    after ``blocks``, of one row a token, and the logits must be the same but for rounding, as they
    are not where tokens see later ones, or where llama.cpp has a fault. The memory is empty
    afterwards. Raises ModelError."""
    size = llama.n_vocab()
    tokens = [_first_token(llama), size // 3, size // 2][: llama.n_batch]
    with _refusing(llama):
        together = _logits_after(llama, [tokens], blocks)
        alone = _logits_after(llama, [tokens[:-1], tokens[-1:]], blocks)
        with np.errstate(all="ignore"):
            alike = float(np.corrcoef(together, alone)[0, 1])
        if alike < LEAST_ALIKE:  # not where they are NaN
            raise SteeringError(
                f"the logits after three tokens decoded together, and after the last one decoded "
                f"alone, correlate by {alike:.2f}, expected 1.00: this llama.cpp computes the one "
                "otherwise than the other"
            )


def _require_pushed(llama: Llama, policy: Policy) -> None:
    """Raise SteeringError unless a push by D changes what is sampled after it, once."""
    plain = _logits_sampled(llama)
    pushed = _logits_sampled(llama, replace(policy, gate="open", strength=1.0))
    if llama.last_steering is None:
        raise SteeringError("llama-cpp-python sampled a token in a way that is not hooked")
    if np.array_equal(plain, pushed, equal_nan=True):
        raise SteeringError("a changed hidden state changes nothing")
    if not np.array_equal(plain, _logits_sampled(llama), equal_nan=True):
        raise SteeringError("what was steered once stays steered")


def _logits_sampled(llama: Llama, *policies: Policy) -> Rows:
    """The logits that a token is sampled from after one, under ``policies``."""
    _empty(llama)
    with llama.using(*policies):
        llama.eval([_first_token(llama)])
        llama.sample(temp=0.0)
    return logits(llama)


@contextmanager
def _refusing(llama: Llama, where: str = "") -> Iterator[None]:
    """Context manager: what fails within is a ModelError, and the context is empty afterwards."""
    try:
        yield
    except (RuntimeError, ModelError) as error:
        architecture = llama.metadata.get("general.architecture", "")
        raise ModelError(
            f"{llama.model_path}: this model ({architecture}) cannot be steered{where}: {error}"
        ) from error
    finally:
        _empty(llama)


def _first_token(llama: Llama) -> int:
    return max(llama.token_bos(), 0)


def _empty(llama: Llama) -> None:
    llama.context.rewind(0)


def _logits_after(llama: Llama, runs: Sequence[list[int]], blocks: Sequence[int]) -> Rows:
    """The logits after ``runs`` of tokens, each evaluated at once, from an empty context on."""
    _empty(llama)
    with llama.context.evaluating():
        for run in filter(None, runs):
            eval_seen(llama, llama.tap, blocks, run, lambda *_: None)
    return logits(llama)
