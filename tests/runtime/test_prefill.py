"""What several prompts begin with is decoded once."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf.runtime.chunks import Chunk, n_alike, text_chunk
from mars_gguf.runtime.prefill import CachedPrompt, _distinct_prefixes

short_texts = st.lists(st.integers(0, 2), max_size=6).map(tuple)


@settings(deadline=None)
@given(st.lists(short_texts, min_size=1, max_size=5), short_texts)
def test_what_several_prompts_begin_with_is_decoded_once(
    prompts: list[tuple[int, ...]], before: tuple[int, ...]
) -> None:
    decoded = [n_alike(tokens, before) for tokens in prompts]
    for tokens, n in zip(prompts, decoded, strict=True):
        assert tokens[:n] == before[:n] and tokens[n : n + 1] != (before[n : n + 1] or (None,))
    entries = _distinct_prefixes(dict(enumerate(zip(prompts, decoded, strict=True))))
    rebuilt = [list(tokens[:n]) for tokens, n in zip(prompts, decoded, strict=True)]
    for token, position, owners, _ in entries:
        assert len({tuple(rebuilt[i]) for i in owners}) == 1
        for i in owners:
            assert position == len(rebuilt[i])
            rebuilt[i].append(token)
    assert [tuple(tokens) for tokens in rebuilt] == prompts
    distinct = {tokens[:end] for tokens in prompts for end in range(1, len(tokens) + 1)}
    assert len(entries) == len(distinct - {before[:end] for end in range(1, len(before) + 1)})


media = st.tuples(st.integers(1, 3), st.integers(3, 4))  # of a few pictures, and how long they are


@st.composite
def prompts(draw: st.DrawFn) -> CachedPrompt:
    head = []
    for text, (picture, n) in draw(st.lists(st.tuples(short_texts, media), max_size=2)):
        head += [text_chunk(text), Chunk("image", n, 1, (b"picture", picture, n))]
    return CachedPrompt(head, (*draw(short_texts), 7))


def units(prompt: CachedPrompt) -> list[Any]:
    """What the runs hold: tokens one by one, pictures whole, and where each run ends."""
    found: list[Any] = []
    for run in prompt.runs:
        found += [*run.tokens, "end"] if run.is_text else [run.identity]
    return found


@settings(deadline=None)
@given(prompts(), prompts())
def test_two_prompts_share_whole_runs_and_tokens_of_the_next(
    one: CachedPrompt, other: CachedPrompt
) -> None:
    n_runs, n_tokens = one.shared(other)
    assert other.shared(one) == (n_runs, n_tokens)
    assert one.beginning(n_runs) == other.beginning(n_runs)
    shared = sum(1 if not run.is_text else run.n_tokens + 1 for run in one.runs[:n_runs])
    assert shared + n_tokens == n_alike(units(one), units(other))
    assert one.n_cells == 1 + sum(run.n_tokens for run in one.runs)
