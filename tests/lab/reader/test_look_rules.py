"""What scores catch, against the same computed slowly, on random scores."""

from __future__ import annotations

import numpy as np
import pytest

from lab.reader import look_rules
from lab.reader.look_rules import CERTIFIED, NEUTRAL, PASSING, Asked, area, caught, certified, share
from lab.reader.look_sets import KINDS
from mars_gguf.statistics import auroc, largest_count


@pytest.fixture(scope="module")
def asked() -> Asked:
    rng = np.random.default_rng(1)
    kinds = np.repeat(KINDS, 90)
    return Asked(kinds, np.tile(np.arange(30), 9), rng.random(270) < 0.2)


@pytest.fixture(scope="module")
def t(asked: Asked) -> np.ndarray:
    """Scores with ties."""
    drawn = np.random.default_rng(2).normal(asked.kinds == "harmful", 1)
    return np.asarray(drawn.round(1))


@pytest.fixture
def weights(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setattr(look_rules, "RESAMPLES", 10)
    return asked.weights()


def slowly_caught(t: np.ndarray, asked: Asked, allowed: float) -> float:
    neutral = [
        x for x, k, r in zip(t, asked.kinds, asked.refused, strict=True) if k != "harmful" and not r
    ]
    least = min(
        threshold
        for threshold in [-np.inf, *neutral]
        if sum(x > threshold for x in neutral) <= allowed * len(neutral)
    )
    harmful = [
        (x, r) for x, k, r in zip(t, asked.kinds, asked.refused, strict=True) if k == "harmful"
    ]
    return float(np.mean([x > least or r for x, r in harmful]))


def test_what_is_judged_is_that_of_the_resampled_prompts(
    t: np.ndarray, asked: Asked, weights: np.ndarray
) -> None:
    assert (weights[0] == 1).all()
    opens = t > 1
    for i, row in enumerate(weights.astype(int)):
        some, again = np.repeat(t, row), np.repeat(np.arange(len(t)), row)
        drawn = Asked(asked.kinds[again], asked.wordings[again], asked.refused[again])
        for allowed in (0.1, 0.05, 0.0):
            expected = slowly_caught(some, drawn, allowed)
            assert caught(t, asked, allowed, weights)[i] == pytest.approx(expected)
        for kind in NEUTRAL:
            expected = auroc(some[drawn.kinds == "harmful"], some[drawn.kinds == kind])
            assert area(t, asked, kind, weights)[i] == pytest.approx(expected)
            opened = [
                o
                for o, k, r in zip(opens[again], drawn.kinds, drawn.refused, strict=True)
                if k == kind and not r
            ]
            assert share(opens, weights, asked.of(kind))[i] == pytest.approx(np.mean(opened))


def test_a_resample_draws_wordings_whole(asked: Asked, weights: np.ndarray) -> None:
    for row in weights:
        by_wording = [set(row[asked.wordings == w]) for w in range(30)]
        assert all(len(counts) == 1 for counts in by_wording)
        assert row.sum() == len(row)


def test_the_certified_threshold_is_the_least_that_few_wordings_exceed(
    t: np.ndarray, asked: Asked
) -> None:
    neutral = asked.of(*NEUTRAL)

    def beyond(threshold: float, most: float) -> int:
        above = [t[neutral & (asked.wordings == w)] > threshold for w in range(30)]
        return sum(one.mean() > most for one in above)

    allowed = largest_count(30, CERTIFIED)
    assert allowed > 0
    least = min(x for x in t[neutral] if beyond(x, PASSING) <= allowed)
    assert certified(t, asked) == least
