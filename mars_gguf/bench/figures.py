"""Figures and their statistics: a limit, an aim, and samples from interleaved runs. No model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FLAT = 0.1
Run = Callable[[], float]
Verdict = Literal["met", "missed", "not measured", "shown"]


def timed(work: Callable[[], object]) -> Run:
    """A run of ``work`` that returns its seconds."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def interleaved(
    runs: Mapping[str, Run], repetitions: int, *, warmup: int = 1
) -> dict[str, list[float]]:
    """What each of ``runs`` returned, ``repetitions`` times: A B, B A, A B, ..., so that what the
    machine does meanwhile falls on all alike. The first ``warmup`` rounds do not count."""
    results: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warmup, repetitions):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            result = runs[name]()
            if turn >= 0:
                results[name].append(result)
    return results


@dataclass(frozen=True)
class Summary:
    """Median and quartiles (linear interpolation) of samples."""

    median: float
    low: float
    high: float


def summary(samples: Sequence[float]) -> Summary:
    low, median, high = np.quantile(np.asarray(samples, np.float64), [0.25, 0.5, 0.75])
    return Summary(float(median), float(low), float(high))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One ratio a pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


@dataclass(frozen=True)
class Fit:
    """The straight line of least squares through (x, y), and R squared: the share of the variance
    of y that it explains; 1 where y does not vary."""

    slope: float
    intercept: float
    r_squared: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    slope, intercept = (float(value) for value in np.polyfit(x, y, 1))
    at, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    residual = float(((values - slope * at - intercept) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    return Fit(slope, intercept, 1.0 - residual / total if total > 0 else 1.0)


@dataclass(frozen=True)
class Aim:
    """The bound that the median of a figure is held against: at most, or at least."""

    bound: float
    at_least: bool = False

    def met(self, median: float) -> bool:
        return median >= self.bound if self.at_least else median <= self.bound


@dataclass
class Figure:
    """One line of the report. ``aim`` None: shown only. ``values`` is what the samples were
    computed of, by name; ``note`` says what was done; ``failure`` is why the figure is missed
    whatever the samples are, ``absent`` why there are none."""

    name: str
    title: str
    limit: str
    aim: Aim | None
    unit: str = ""
    samples: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    failure: str = ""
    absent: str = ""

    @property
    def verdict(self) -> Verdict:
        if not self.samples:
            return "not measured"
        if self.failure:
            return "missed"
        if self.aim is None:
            return "shown"
        return "met" if self.aim.met(summary(self.samples).median) else "missed"

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "limit": self.limit,
            "aim": self.aim and {"bound": self.aim.bound, "at_least": self.aim.at_least},
            "unit": self.unit,
            **({"summary": vars(summary(self.samples))} if self.samples else {}),
            "verdict": self.verdict,
            "samples": self.samples,
            "values": self.values,
            "note": self.note,
            "failure": self.failure,
            "absent": self.absent,
        }


@dataclass
class Line:
    """Seconds of extraction against a number of something: ``seconds[i]`` are the repetitions at
    ``x[i]``. The line is fitted to their medians."""

    name: str
    label: str
    x: list[float]
    seconds: list[list[float]]

    @property
    def medians(self) -> list[float]:
        return [summary(samples).median for samples in self.seconds]

    @property
    def fit(self) -> Fit:
        return fit(self.x, self.medians)

    @property
    def flat(self) -> bool:
        """Whether the fitted line changes by less than FLAT of the mean from end to end: R squared
        then tells of the noise alone."""
        change = self.fit.slope * (max(self.x) - min(self.x))
        return abs(change) < FLAT * float(np.mean(self.medians))

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "label": self.label,
            "x": self.x,
            "seconds": self.seconds,
            "fit": vars(self.fit),
            "flat": self.flat,
        }


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """The figures that miss their aim. Those that were not measured are not among them."""
    return [figure for figure in figures if figure.verdict == "missed"]
