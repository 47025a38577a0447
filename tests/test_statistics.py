from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.statistics import Share, auroc, median_ratio, share, upper_bound

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_a_wilson_bound_is_a_probability_that_lies_just_1_96_errors_from_what_was_seen(
    count: tuple[int, int],
) -> None:
    k, n = count
    found = Share(k, n)
    for bound in (found.low, found.high):
        assert 0 <= bound <= 1
        error = math.sqrt(bound * (1 - bound) / n)
        if 0 < bound < 1:
            assert abs(k / n - bound) / error == pytest.approx(1.959964, rel=1e-5)
    assert found.low <= k / n <= found.high
    assert (found.low == 0) == (k == 0)
    assert (found.high == 1) == (k == n)


@given(counts)
def test_an_interval_is_that_of_the_complement_mirrored(count: tuple[int, int]) -> None:
    k, n = count
    assert Share(k, n).low == pytest.approx(1 - Share(n - k, n).high, abs=1e-12)


def test_a_share_of_nothing_is_no_number() -> None:
    empty = share([])
    assert (empty.value, empty.low, empty.high, str(empty)) == (None, 0.0, 1.0, "-")


def test_a_share_reads_as_percent_with_its_interval_and_count() -> None:
    assert str(share([True] * 20 + [False] * 4)) == "83.3 % (64-93), 20 of 24"


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_auroc_is_the_share_of_pairs_in_the_right_order(
    positive: list[int], negative: list[int]
) -> None:
    won = 0.0
    for p in positive:
        for n in negative:
            won += 1.0 if p > n else 0.5 if p == n else 0.0
    assert auroc(np.array(positive), np.array(negative)) == pytest.approx(
        won / (len(positive) * len(negative))
    )


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=60),
    st.floats(0, 1, exclude_max=True),
)
def test_at_most_the_share_lies_above_the_upper_bound_and_no_lower_sample_will_do(
    values: list[float], budget: float
) -> None:
    sample = np.array(values)
    bound = upper_bound(sample, budget)
    assert bound in sample
    assert (sample > bound).sum() <= budget * len(sample)
    for lower in sample[sample < bound]:
        assert (sample > lower).sum() > int(budget * len(sample))


def test_a_ratio_is_the_median_over_pairs() -> None:
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
    assert median_ratio([1.0], [0.0]) is None
