"""Splits of prompts, and of neutral probes by form and kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.convert.prompts import Prompt, builtin_contrast
from mars_gguf.convert.splits import halves, split, split_prompts
from mars_gguf.errors import MarsError


@given(
    st.lists(st.text(), min_size=2, unique=True),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(),
)
def test_a_split_keeps_every_item_once_in_order_and_repeats_itself(items, held_out, seed):
    train, held = split(items, held_out, seed)
    assert train and held
    assert sorted(train + held) == sorted(items)
    assert train == [item for item in items if item in train]
    assert abs(len(held) - held_out * len(items)) <= 1
    assert split(items, held_out, seed) == (train, held)


def test_a_split_is_the_same_on_every_machine_and_differs_by_seed():
    assert split(range(10), 0.3, 7)[1] == [3, 4, 7]
    assert len({tuple(split(range(40), 0.5, seed)[1]) for seed in range(20)}) == 20


def test_matched_pairs_stay_together_in_a_split():
    contrast = builtin_contrast()
    partner = dict(zip(contrast.harmful, contrast.harmless, strict=True))
    splits = split_prompts(contrast, {}, 0.25, seed=3)
    for harmful, harmless in zip(splits.harmful, splits.harmless, strict=True):
        assert [p.text for p in harmless] == [partner[p.text] for p in harmful]
        assert {(p.kind, p.form) for p in (*harmful, *harmless)} == {("text", "text")}


@pytest.mark.parametrize("held_out", [0, 1, -0.1, float("nan")])
def test_a_split_without_both_parts_is_refused(held_out):
    with pytest.raises(MarsError, match="held-out share"):
        split(["a", "b"], held_out, 0)
    with pytest.raises(MarsError, match="expected at least 2"):
        split(["a"], 0.5, 0)


strata = st.tuples(st.sampled_from(["noise", "drawn"]), st.sampled_from(["question", "request"]))


@given(st.lists(strata, min_size=2, max_size=40), st.integers(0, 9))
def test_halves_share_every_stratum_of_two_or_more_fairly(found, seed):
    probes = [Prompt(str(i), (), form, kind) for i, (kind, form) in enumerate(found)]
    fit, check = halves(probes, seed)
    assert len({p.text for p in (*fit, *check)}) == len(fit) + len(check)
    for stratum in found:
        n, a, b = (sum((p.kind, p.form) == stratum for p in part) for part in (probes, fit, check))
        if n > 1:
            assert a + b == n and abs(a - b) <= 1


def test_what_stands_alone_in_its_stratum_is_split_with_others_of_that_sort():
    fit, check = halves([Prompt(str(i), (), str(i)) for i in range(20)], 0)
    assert len(fit) == len(check) == 10


def test_the_number_of_all_prompts_is_that_of_all_parts():
    contrast = builtin_contrast()
    probes = [Prompt(str(i), (), "question", "own") for i in range(16)]
    splits = split_prompts(contrast, {"image": probes}, 0.5, 0)
    assert len(splits) == len(contrast.harmful) + len(contrast.harmless) + 16


def test_halves_that_are_too_small_are_refused_naming_the_modality():
    probes = [Prompt(str(i), (), "question", "own") for i in range(14)]
    with pytest.raises(MarsError, match=r"each half of the neutral prompts \(video\): found 7"):
        split_prompts(builtin_contrast(), {"video": probes}, 0.5, 0)
