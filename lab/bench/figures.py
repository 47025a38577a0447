"""Figures and their statistics: an aim, samples of interleaved runs, and their noise. No model.

table.json names them, in their order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Run = Callable[[], float]
Verdict = Literal["met", "missed", "within the noise", "not measured", "shown"]
TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("table.json").read_text("utf-8"))


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
    """Repeats all ``runs`` in turn, and returns what each gave: A B, B A, A B, ..., so that what
    the machine does meanwhile falls on all alike. The first ``warmup`` rounds do not count."""
    results: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warmup, repetitions):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            result = runs[name]()
            if turn >= 0:
                results[name].append(result)
    return results


class Summary(NamedTuple):
    """Median and quartiles (linear interpolation) of samples."""

    median: float
    low: float
    high: float


def summary(samples: Sequence[float]) -> Summary:
    """Summarizes at least one sample."""
    return Summary(*(float(value) for value in np.quantile(samples, [0.5, 0.25, 0.75])))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One ratio a pair."""
    return [a / b for a, b in zip(above, below, strict=True)]


def differences(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One difference a pair."""
    return [a - b for a, b in zip(above, below, strict=True)]


@dataclass(frozen=True)
class Aim:
    """The bound that the median of a figure is held against: at most, or at least."""

    bound: float
    at_least: bool = False

    def met(self, median: float) -> bool:
        return median >= self.bound if self.at_least else median <= self.bound


@dataclass
class Figure:
    """One line of the table.

    aim: None if the figure is only shown. samples: what was measured, a ratio or a difference.
    control: ratios of the same work to itself, whose distance from 1 is noise. values: what the
    samples were computed of, by name. note: what was done. failure: why the figure is missed
    whatever the samples are. absent: why there are none.
    """

    name: str
    title: str
    limit: str
    aim: Aim | None = None
    unit: str = ""
    samples: list[float] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    failure: str = ""
    absent: str = ""

    @classmethod
    def named(cls, name: str) -> Figure:
        """A figure of the table, still to be measured."""
        row = TABLE[name]
        return cls(name, **row | {"aim": Aim(**row["aim"]) if "aim" in row else None})

    @property
    def verdict(self) -> Verdict:
        if not self.samples:
            return "not measured"
        if self.failure:
            return "missed"
        if self.aim is None:
            return "shown"
        median = summary(self.samples).median
        if max(abs(median - 1), abs(self.aim.bound - 1)) <= self.noise:
            return "within the noise"
        return "met" if self.aim.met(median) else "missed"

    @property
    def noise(self) -> float:
        """How far from 1 the quartiles of the control are; negative without a control."""
        if not self.control:
            return -1.0
        spread = summary(self.control)
        return max(abs(spread.low - 1), abs(spread.high - 1))

    def as_json(self) -> dict[str, Any]:
        found = {"summary": summary(self.samples)._asdict()} if self.samples else {}
        return asdict(self) | found | {"verdict": self.verdict}


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """The figures that miss their aim. Those that were not measured are not among them."""
    return [figure for figure in figures if figure.verdict == "missed"]
