"""The states of the last token are read, once, where they were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from asking import FOLLOW_UP, LONG, QUESTION, every_model
from models import DEMO, OPTIONS, last_states, tapped, tokens_of

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.reading import logits
from mars_gguf.runtime.tap import Rows


@every_model
def test_the_last_token_is_read_after_each_block_whatever_the_batches(model: str) -> None:
    llama, reference = (tapped(model, **OPTIONS | {"n_batch": 16}) for _ in range(2))
    tokens = tokens_of(llama, LONG)[:40]
    expected = last_states(reference, tokens)
    blocks = sorted(expected)
    reader = llama.steerer.reader
    assert not reader.knows(blocks) and reader.knows([])
    with llama.context.evaluating():
        reader.evaluate(tokens, blocks)
    assert reader.knows(blocks) and not reader.knows([*blocks, 99])
    for block in blocks:
        assert np.array_equal(reader.states[block], expected[block])
    assert np.array_equal(logits(llama), logits(reference))
    llama.eval(tokens[:1])
    assert not reader.knows(blocks[:1])  # the context ends elsewhere


def test_another_state_may_be_put_in_its_place() -> None:
    llama, plainly = tapped(DEMO, **OPTIONS), tapped(DEMO, **OPTIONS)
    tokens, reader = tokens_of(llama, QUESTION), llama.steerer.reader
    with llama.context.evaluating():
        after = reader.evaluate(tokens, [2, 5], lambda block, row: 2 * row if block == 2 else None)
    expected = last_states(plainly, tokens)
    assert list(after) == [2]
    assert np.array_equal(after[2], 2 * expected[2])
    assert np.array_equal(reader.states[2], expected[2])  # as it was before
    assert not np.array_equal(reader.states[5], expected[5])  # as it follows from the change


def test_a_block_that_is_not_seen_is_an_error_and_nothing_is_known() -> None:
    llama = tapped(DEMO, **OPTIONS)
    with llama.context.evaluating(), pytest.raises(SteeringError, match="l_out-99"):
        llama.steerer.reader.evaluate(tokens_of(llama, QUESTION), [2, 99])
    assert not llama.steerer.reader.knows([2])


@pytest.mark.parametrize("raised", [ModelError("seen"), KeyboardInterrupt()], ids=type)
def test_after_an_error_the_context_is_as_it_was(raised: BaseException) -> None:
    llama, fresh = tapped(DEMO, **OPTIONS), tapped(DEMO, **OPTIONS)
    before, more = tokens_of(llama, QUESTION), tokens_of(llama, FOLLOW_UP)
    llama.eval(before)

    def fail(_block: int, _row: Rows) -> Any:
        raise raised

    with llama.context.evaluating(), pytest.raises(type(raised)):
        llama.steerer.reader.evaluate(more, [2], fail)
    assert llama.n_tokens == len(before)
    for each in (llama, fresh):
        if each is fresh:
            each.eval(before)
        each.eval(more)
    assert np.array_equal(logits(llama), logits(fresh))
