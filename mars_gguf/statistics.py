"""Computes counts, shares and means with their uncertainty. numpy only; no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share, ``k`` of ``n``, with its interval at 95 %: ``bounds``, or that of `wilson`."""

    k: int
    n: int
    bounds: tuple[float, float] | None = None

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def low(self) -> float:
        return self._bounds()[0]

    @property
    def high(self) -> float:
        return self._bounds()[1]

    def _bounds(self) -> tuple[float, float]:
        if self.bounds is not None:
            return self.bounds
        return wilson(self.k / self.n, self.n) if self.n else (0.0, 1.0)

    def as_json(self) -> dict[str, float | int | None]:
        return {"k": self.k, "n": self.n, "share": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """Writes it as in "83.3 % (64-93), 20 of 24"."""
        if self.value is None:
            return "-"
        bounds = f"{100 * self.low:.0f}-{100 * self.high:.0f}"
        return f"{100 * self.value:.1f} % ({bounds}), {self.k} of {self.n}"


def wilson(p: float, n: int) -> tuple[float, float]:
    """Computes the score interval at 95 % of a share ``p`` of ``n`` (Wilson 1927): never outside 0
    to 1, and honest at 0 and at 1."""
    z = Z95
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return 0.0 if p == 0 else (centre - half) / scale, 1.0 if p == 1 else (centre + half) / scale


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Computes the median over pairs of ``above[i] / below[i]``; None without a pair."""
    pairs = [a / b for a, b in zip(above, below, strict=True) if b > 0]
    return float(np.median(pairs)) if pairs else None


def auroc(positive: Array, negative: Array) -> float:
    """Computes the probability that a positive lies above a negative, ties counting half."""
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


CONFIDENCE = 0.95


def largest_count(n: int, share: float) -> int:
    """Finds the largest number k of ``n`` independent samples that may exceed a value for it to be
    shown, with CONFIDENCE, that at most a ``share`` of all do: the largest k with
    P(Binomial(n, share) <= k) <= 1 - CONFIDENCE; -1 if n is too small for any. For 1 % the first n
    that will do is 299.
    """
    k, at_most = -1, 0.0
    while k < n:
        at_most += _binomial(k + 1, n, share)
        if at_most > 1 - CONFIDENCE:
            return k
        k += 1
    return n


def exceedance_bound(k: int, n: int) -> float:
    """Finds the least share that, with CONFIDENCE, bounds how often what was seen ``k`` times of
    ``n`` happens (Clopper and Pearson 1934, one-sided)."""
    if k >= n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        seen = sum(_binomial(i, n, middle) for i in range(k + 1))
        low, high = (middle, high) if seen > 1 - CONFIDENCE else (low, middle)
    return high


def _binomial(k: int, n: int, share: float) -> float:
    """Computes P(Binomial(n, share) = k)."""
    if share in (0.0, 1.0):
        return float(k == n * share)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))


def upper_bound(values: Array, share: float) -> Array:
    """Finds, by columns, the least of the samples [n, ...] that, with CONFIDENCE, at most a
    ``share`` of all there are exceed, whatever their distribution: an order statistic (Wilks 1941).
    The largest sample if there are too few; then `exceedance_bound` says what was met."""
    ordered = np.sort(values, axis=0)
    return np.asarray(ordered[-1 - max(0, largest_count(len(ordered), share))])


DRAWS = 101


def grouped_upper_bound(values: Array, groups: Sequence[str], share: float) -> float:
    """Finds a value that, with CONFIDENCE, a ``share`` of all samples exceed at most, where those
    of one group are not independent of each other (requests in one wording, say): the median over
    DRAWS of `upper_bound` of one sample [n] of each group, drawn at random, the same at every
    call. With groups of one it is `upper_bound`."""
    _, index, sizes = np.unique(
        np.asarray(groups, object).astype(str), return_inverse=True, return_counts=True
    )
    if len(sizes) == len(groups):
        return float(upper_bound(values, share))
    ordered, starts = values[np.argsort(index, kind="stable")], np.cumsum(sizes) - sizes
    drawn = np.random.default_rng(0).random((DRAWS, len(sizes)))
    chosen = ordered[starts + (drawn * sizes).astype(int)]
    return float(np.median(upper_bound(chosen.T, share)))


RESAMPLES = 2000
AT_ONCE = 1 << 22  # draws


@dataclass(frozen=True)
class Mean:
    """The mean of ``n`` values, with its interval at 95 %."""

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        low, high = (x if math.isfinite(x) else None for x in (self.low, self.high))
        return {"mean": self.value, "low": low, "high": high, "n": self.n}


def grouped_mean(values: Sequence[float], groups: Sequence[str]) -> Mean:
    """Computes the mean of ``values``, of which those of one group are not independent.

    Its interval is the percentile bootstrap over groups (Efron and Tibshirani 1993, chapter 8),
    RESAMPLES of them, the same at every call. Of one group alone the interval is everything. Raises
    ValueError for none.
    """
    if not values:
        raise ValueError("the mean of no values")
    names, index = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    sums, counts = (np.bincount(index, of).astype(float) for of in (values, np.ones(len(values))))
    mean = float(np.mean(values))
    if len(names) == 1:
        return Mean(mean, -math.inf, math.inf, len(values))
    low, high = np.quantile(_resampled(sums, counts), [0.025, 0.975])
    return Mean(mean, float(low), float(high), len(values))


def _resampled(sums: Array, counts: Array) -> Array:
    """Computes the means of resamples of groups, by the sum and count of each."""
    rng, size = np.random.default_rng(0), len(sums)
    means = []
    for start in range(0, RESAMPLES, most := max(1, AT_ONCE // size)):
        drawn = rng.integers(size, size=(min(most, RESAMPLES - start), size))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)


def grouped_share(flags: Sequence[bool], groups: Sequence[str]) -> Share:
    """Counts how many are true, with the interval of `grouped_mean`; of none or all, which no
    resample differs from, and of one group, the Wilson interval as if each group were one sample.
    """
    k, n, size = sum(flags), len(flags), len(set(groups))
    if 0 < k < n and size > 1:
        mean = grouped_mean([float(flag) for flag in flags], groups)
        return Share(k, n, (mean.low, mean.high))
    as_one = Share(round(size * k / n), size) if n else Share(0, 0)
    return Share(k, n, (as_one.low, as_one.high))
