"""Runs of tokens: what is left of one, and what two begin with."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf.runtime.chunks import n_alike, text_chunk

texts = st.lists(st.integers(0, 2), max_size=8)


@settings(deadline=None)
@given(texts, st.integers(0, 9))
def test_the_rest_of_a_text_is_the_text_of_the_tokens_that_are_left(
    tokens: list[int], n: int
) -> None:
    rest, expected = text_chunk(tokens).after(n), text_chunk(tokens[n:])
    assert rest.is_text and rest.tokens == tuple(tokens[n:])
    assert rest.n_tokens == rest.n_positions == len(rest.tokens)
    assert rest.identity == expected.identity


@settings(deadline=None)
@given(texts, texts)
def test_two_runs_are_alike_up_to_their_longest_common_beginning(
    a: list[int], b: list[int]
) -> None:
    common = [n for n in range(min(len(a), len(b)) + 1) if a[:n] == b[:n]]
    assert n_alike(a, b) == n_alike(tuple(b), a) == max(common)
    assert (text_chunk(a).identity == text_chunk(b).identity) == (a == b)
