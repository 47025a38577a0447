from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.statistics import Share, median_ratio, share

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


def test_a_ratio_is_the_median_over_pairs() -> None:
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
    assert median_ratio([1.0], [0.0]) is None
