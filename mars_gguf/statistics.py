"""Counts with their uncertainty. numpy only; no model."""

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
    """``k`` of ``n``, with the Wilson score interval at 95 % (Wilson 1927): from ``low`` to
    ``high``, never outside 0 to 1, and honest at 0 and at n."""

    k: int
    n: int

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
        if not self.n:
            return 0.0, 1.0
        p, n, z = self.k / self.n, self.n, Z95
        centre = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        low = 0.0 if self.k == 0 else (centre - half) / scale
        return low, 1.0 if self.k == self.n else (centre + half) / scale

    def as_json(self) -> dict[str, float | int | None]:
        return {"k": self.k, "n": self.n, "share": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        """Such as "83.3 % (64-93), 20 of 24"."""
        if self.value is None:
            return "-"
        bounds = f"{100 * self.low:.0f}-{100 * self.high:.0f}"
        return f"{100 * self.value:.1f} % ({bounds}), {self.k} of {self.n}"


def share(flags: Sequence[bool]) -> Share:
    """How many are true."""
    return Share(sum(flags), len(flags))


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Median over pairs of ``above[i] / below[i]``; None without a pair."""
    pairs = [a / b for a, b in zip(above, below, strict=True) if b > 0]
    return float(np.median(pairs)) if pairs else None


def auroc(positive: Array, negative: Array) -> float:
    """Probability that a positive lies above a negative, ties counting half."""
    difference = np.asarray(positive)[:, None] - np.asarray(negative)[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def upper_bound(values: Array, share: float) -> Array:
    """The value that at most a ``share`` of the samples [n, ...] exceed: an order statistic, so
    for fewer than 1 / share samples it is their maximum."""
    ordered = np.sort(values, axis=0)
    return np.asarray(ordered[len(ordered) - 1 - int(share * len(ordered))])
