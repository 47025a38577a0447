"""Counts and intervals against scipy's and scikit-learn's, and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from mars_gguf.statistics import (
    Share,
    auroc,
    exceedance_bound,
    grouped_mean,
    grouped_share,
    largest_count,
    median_ratio,
    upper_bound,
)

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_the_interval_of_a_share_is_wilsons(count: tuple[int, int]) -> None:
    k, n = count
    found, expected = Share(k, n), stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert ((found.low == 0) == (k == 0)) and ((found.high == 1) == (k == n))


def test_a_share_reads_as_percent_with_its_interval_and_count_and_of_nothing_is_no_number() -> None:
    assert str(Share(20, 24)) == "83.3 % (64-93), 20 of 24"
    empty = Share(0, 0)
    assert (empty.value, empty.low, empty.high, str(empty)) == (None, 0.0, 1.0, "-")


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_auroc_is_the_area_under_the_curve(positive: list[int], negative: list[int]) -> None:
    labels = [1] * len(positive) + [0] * len(negative)
    expected = roc_auc_score(labels, positive + negative)
    assert auroc(np.array(positive), np.array(negative)) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0.001, 0.5))
def test_so_many_may_exceed_that_one_more_would_show_nothing(n: int, budget: float) -> None:
    k = largest_count(n, budget)
    assert stats.binom.cdf(k, n, budget) <= 0.05 + 1e-9
    assert k == n or stats.binom.cdf(k + 1, n, budget) > 0.05 - 1e-9


def test_a_share_of_one_percent_takes_299_samples_and_of_five_percent_59() -> None:
    for budget, n in ((0.01, 299), (0.05, 59)):
        assert (largest_count(n - 1, budget), largest_count(n, budget)) == (-1, 0)
        assert exceedance_bound(0, n) < budget < exceedance_bound(0, n - 1)
    assert largest_count(10**4, 0.0) == -1


@settings(deadline=None)
@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_bound_is_clopper_and_pearsons_on_one_side(count: tuple[int, int]) -> None:
    k, n = count
    expected = stats.binomtest(k, n, alternative="less").proportion_ci(0.95, "exact")
    assert exceedance_bound(k, n) == pytest.approx(expected.high, abs=1e-9)


@pytest.mark.parametrize(("n", "budget"), [(299, 0.01), (300, 0.05), (40, 0.1)])
def test_an_upper_bound_holds_nineteen_times_in_twenty_whatever_the_distribution(
    n: int, budget: float
) -> None:
    uniform = np.random.default_rng(3).random((n, 4000))  # samples of 4000 runs
    expected = 1 - stats.binom.cdf(largest_count(n, budget), n, budget)
    for quantile in (np.tan, np.exp, np.square):  # of a distribution, at 0 to 1
        held = (upper_bound(quantile(uniform), budget) >= quantile(1 - budget)).mean()
        assert held >= 0.95 - 0.01
        assert held == pytest.approx(expected, abs=0.01)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=80),
    st.floats(0, 1, exclude_max=True),
)
def test_an_upper_bound_is_a_sample_that_no_more_than_may_exceed(
    values: list[float], budget: float
) -> None:
    sample = np.array(values)
    bound, k = upper_bound(sample, budget), largest_count(len(sample), budget)
    assert bound in sample
    assert (sample > bound).sum() <= max(k, 0)
    for lower in sample[sample < bound]:
        assert (sample > lower).sum() > k
    assert upper_bound(sample[:, None] * [1, 2], budget).tolist() == [bound, 2 * bound]


def test_a_ratio_is_the_median_over_pairs() -> None:
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
    assert median_ratio([1.0], [0.0]) is None


def test_an_interval_by_group_is_the_bootstraps_over_groups() -> None:
    rng = np.random.default_rng(5)
    index = rng.integers(12, size=80)
    values = rng.normal(size=80) + index
    sums, sizes = (np.bincount(index, of) for of in (values, np.ones(80)))
    expected = stats.bootstrap(
        (sums, sizes), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True,
        n_resamples=4000, method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    groups = [f"g{i}" for i in index]
    found = grouped_mean(values.tolist(), groups)
    assert (found.value, found.n) == (pytest.approx(values.mean()), 80)
    near = 0.15 * expected.standard_error
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=near)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=near)
    assert grouped_mean(values.tolist(), groups) == found


def test_what_is_asked_twice_of_the_same_things_is_no_more_certain() -> None:
    rng = np.random.default_rng(6)
    once = rng.random(60) < 0.4
    things = [str(i) for i in range(60)]
    alone = grouped_share(once.tolist(), things)
    four = grouped_share([bool(x) for x in once] * 4, things * 4)
    assert (four.k, four.n) == (4 * alone.k, 4 * alone.n)
    assert (four.low, four.high) == pytest.approx((alone.low, alone.high))
    wilson = Share(alone.k, alone.n)
    assert alone.high - alone.low == pytest.approx(wilson.high - wilson.low, rel=0.1)


@pytest.mark.parametrize("flag", [True, False])
def test_of_none_or_all_the_interval_is_wilsons_of_so_many_groups(flag: bool) -> None:
    found = grouped_share([flag] * 40, [str(i % 8) for i in range(40)])
    as_one = Share(8 * flag, 8)
    assert (found.k, found.n, found.low, found.high) == (40 * flag, 40, as_one.low, as_one.high)


def test_one_group_says_nothing_of_others() -> None:
    found = grouped_share([True, False, True], ["a"] * 3)
    assert found.low < 0.25 and found.high > 0.75
    of_one = grouped_mean([1.0, 2.0], ["a", "a"])
    assert of_one.high == math.inf
    assert of_one.as_json() == {"mean": 1.5, "low": None, "high": None, "n": 2}  # JSON has no inf
    assert grouped_share([], []).value is None


def test_an_interval_by_group_holds_nineteen_times_in_twenty() -> None:
    rng, held = np.random.default_rng(7), 0
    for _ in range(300):
        chances = rng.beta(2, 3, size=40)  # of a thing to be refused; 0.4 on average
        flags = (rng.random((40, 3)) < chances[:, None]).reshape(-1)
        found = grouped_share(flags.tolist(), [str(i // 3) for i in range(120)])
        held += found.low <= 0.4 <= found.high
    assert held >= 300 * 0.91
