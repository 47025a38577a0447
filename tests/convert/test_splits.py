"""Which prompts fit, select and certify."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.convert.prompts import Preamble, Prompt, builtin_contrast, contexts
from mars_gguf.convert.splits import Split, every_second, split, split_prompts
from mars_gguf.errors import MarsError

shares = st.lists(st.floats(0.05, 1), min_size=2, max_size=4).map(
    lambda parts: [p / sum(parts) for p in parts]
)


@given(st.lists(st.text(), min_size=4, unique=True), shares, st.integers())
def test_a_split_keeps_every_item_once_in_order_and_repeats_itself(
    items: list[str], shares: list[float], seed: int
) -> None:
    parts = split(items, shares, seed)
    assert all(parts)
    assert sorted(chain(*parts)) == sorted(items)
    assert all(part == [item for item in items if item in part] for part in parts)
    assert split(items, shares, seed) == parts
    if min(shares) * len(items) >= 2:
        for part, share in zip(parts, shares, strict=True):
            assert abs(len(part) - share * len(items)) <= 1


def test_a_split_is_the_same_on_every_machine_and_differs_by_seed() -> None:
    assert split(range(10), (0.3, 0.7), 7)[0] == [3, 4, 7]
    assert len({tuple(split(range(40), (0.5, 0.5), seed)[1]) for seed in range(20)}) == 20


def test_what_is_too_little_to_split_is_refused() -> None:
    with pytest.raises(MarsError, match="cannot split 2 prompts or pictures in 3"):
        split(["a", "b"], (0.5, 0.2, 0.3), 0)


def texts(prompts: list[Prompt]) -> list[str]:
    return [p.text for p in prompts]


def test_matched_pairs_stay_together_and_no_prompt_measures_twice() -> None:
    contrast = builtin_contrast()
    partner = dict(zip(contrast.harmful, contrast.harmless, strict=True))
    splits = split_prompts(contrast, {}, contexts(), seed=3)
    for harmful, harmless in zip(splits.harmful, splits.harmless, strict=True):
        assert texts(harmless) == [partner[p.text] for p in harmful]
        assert all(p.context == Preamble() for p in (*harmful, *harmless))
    parts = splits.neutral["text"]
    everything = texts(list(chain(*splits.harmful, *parts)))
    sides = contrast.harmful, contrast.harmless, *contrast.neutral.values()
    assert sorted(everything) == sorted(set(chain(*sides)))
    for plain, neutral in zip(splits.harmless, parts, strict=True):
        assert set(texts(plain)) < set(texts(neutral))
    assert Counter(p.form for p in chain(*parts)) == {
        "matched": len(contrast.harmless), **{k: len(v) for k, v in contrast.neutral.items()}
    }  # fmt: skip


@given(st.lists(st.text(), max_size=30), st.integers(0, 4))
def test_every_second_prompt_stands_after_a_context_and_they_take_turns(
    some: list[str], n: int
) -> None:
    before = [Preamble(), *(Preamble(f"context {i}") for i in range(n))]
    found = every_second([Prompt(text) for text in some], before)
    assert texts(found) == some
    assert {p.context.name for p in found[::2]} <= {"none"}
    names = [p.context.name for p in found[1::2]]
    assert names == [f"context {i % n}" if n else "none" for i in range(len(names))]


@pytest.mark.parametrize("before", [[Preamble()], contexts()])
def test_the_number_of_all_prompts_counts_once_what_fits_twice(before: list[Preamble]) -> None:
    """Harmless text fits the centroids, and without a context neutral text, too."""
    probes = Split(*([Prompt(f"{part} {i}") for i in range(8)] for part in "abc"))
    splits = split_prompts(builtin_contrast(), {"image": probes}, before, 0)
    fitted = [*splits.harmful.fit, *splits.harmless.fit]
    others = chain(*(chain(*parts) for parts in (splits.harmful[1:], *splits.neutral.values())))
    assert len(splits) == len({id(prompt) for prompt in (*fitted, *others)})
