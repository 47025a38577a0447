from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp._internals import LlamaBatch

from mars_gguf.batch import Batch

CAPACITY = 12

fillings = st.lists(
    st.tuples(
        st.sampled_from(["one sequence", "several"]),
        st.lists(st.integers(-5, 2**31 - 1), min_size=1, max_size=CAPACITY),
        st.integers(0, 1000),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


def contents(batch: LlamaBatch) -> list[tuple[int, ...]]:
    held = batch.batch
    return [
        (held.token[i], held.pos[i], held.n_seq_id[i], held.seq_id[i][0], held.logits[i])
        for i in range(held.n_tokens)
    ]


def fill(batch: LlamaBatch, fillings: list[Any]) -> list[list[tuple[int, ...]]]:
    filled = []
    for kind, tokens, number, logits_all in fillings:
        if kind == "one sequence":
            batch.set_batch(tokens, number, logits_all)
            if isinstance(batch, Batch):
                assert batch.tokens.tolist() == tokens
        else:
            batch.reset()
            batch.add_sequence(tokens[:6], number, logits_all)
            batch.add_sequence(tokens[6:] or [3], number + 1, logits_all)
        filled.append(contents(batch))
    return filled


@given(fillings)
def test_it_holds_what_llama_cpp_pythons_own_batch_holds(fillings: list[Any]) -> None:
    own = LlamaBatch(n_tokens=CAPACITY, embd=0, n_seq_max=1, verbose=False)
    assert fill(Batch(CAPACITY), fillings) == fill(own, fillings)


@pytest.mark.parametrize("odd", [2**31, -(2**31) - 1, 2**32 + 5, 1.5, "7", None])
def test_what_is_no_token_id_is_refused(odd: Any) -> None:
    batch = Batch(CAPACITY)
    for tokens in ([odd], [3, odd]):
        with pytest.raises((TypeError, OverflowError)):
            batch.set_batch(tokens, 0, False)
