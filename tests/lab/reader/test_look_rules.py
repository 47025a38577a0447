"""Rules and judgements, against the same computed slowly, on random states and scores."""

from __future__ import annotations

import numpy as np
import pytest

from lab.reader import look_rules
from lab.reader.look_rules import (
    CERTIFIED,
    NEUTRAL,
    PASSING,
    VIEWS,
    Asked,
    area,
    caught,
    certified,
    crowded,
    rules,
    scores,
    share,
    thinned,
)
from lab.reader.look_sets import KINDS
from mars_gguf.statistics import auroc, largest_count

BLOCKS = tuple(range(9, 24))
RULES = {rule.name.split()[0]: rule for rule in rules(24)}


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
    harmless = asked.of("harmless")
    by_wording = [t[harmless & (asked.wordings == w)] for w in range(30)]
    every = [(one > 0).mean() > 0.5 for one in by_wording if one.size]
    assert crowded(t > 0, asked, 0.5) == (sum(every), len(every))


@pytest.fixture(scope="module")
def states() -> dict[str, np.ndarray]:
    """Of prompts in two forms and neutral pictures, harm along one axis, form along another."""
    rng = np.random.default_rng(3)
    found = {}
    for form, (medium, n) in enumerate({"text": 40, "asked": 60, "image": 30}.items()):
        for kind in KINDS:
            x = rng.normal(size=(n, len(VIEWS), len(BLOCKS), 8))
            x[..., 0] += 2.0 * (kind == "harmful") + 0.7 * (kind == "borderline")
            x[..., 1] += form
            found[f"fit-{medium}-{kind}"] = x.astype(np.float16)
    return found


def slow_t(
    states: dict[str, np.ndarray], view: int, block: int, varied: bool, x: np.ndarray
) -> np.ndarray:
    at = {n: s[:, view, block].astype(float) for n, s in states.items()}
    r, covariances = np.zeros(8), []
    for form in ("text", "asked") if varied else ("text",):
        neutral = np.concatenate([at[f"fit-{form}-{kind}"] for kind in NEUTRAL])
        covariances.append(np.cov(neutral.T, bias=True))
        harmless = neutral if varied else at[f"fit-{form}-harmless"]
        r += at[f"fit-{form}-harmful"].mean(0) - harmless.mean(0)
    pictures = np.concatenate([at[f"fit-image-{kind}"] for kind in NEUTRAL])
    covariances.append(np.cov(pictures.T, bias=True))
    c = np.mean(covariances, axis=0)
    w = np.linalg.inv(0.5 * c + 0.5 * np.trace(c) / 8 * np.eye(8)) @ r
    safe, unsafe = (at[f"fit-text-{kind}"].mean(0) for kind in ("harmless", "harmful"))
    return np.asarray((x[:, view, block] - safe) @ w / ((unsafe - safe) @ w))


@pytest.mark.parametrize("name", ["(0)", "(a)", "(b3)", "(c2)", "(c4)"])
def test_a_score_is_the_mean_of_t_over_views_and_blocks(
    name: str, states: dict[str, np.ndarray]
) -> None:
    rule = RULES[name]
    x = np.random.default_rng(4).normal(size=(5, len(VIEWS), len(BLOCKS), 8))
    places = [(VIEWS.index(v), BLOCKS.index(b)) for v in rule.views for b in rule.blocks]
    expected = np.mean([slow_t(states, v, b, rule.varied, x) for v, b in places], axis=0)
    found, read = scores(rule, states, {"some": x}, BLOCKS)
    np.testing.assert_allclose(found["some"], expected, rtol=1e-6, atol=1e-9)
    assert read["some"].all()


def test_in_doubt_alone_what_lies_above_the_least_harmful_text_is_read(
    states: dict[str, np.ndarray],
) -> None:
    first, _ = scores(RULES["(a)"], states, states, BLOCKS)
    after, _ = scores(RULES["(c3)"], states, states, BLOCKS)
    found, read = scores(RULES["(d)"], states, states, BLOCKS)
    least = min(first[f"fit-{form}-harmful"].min() for form in ("text", "asked"))
    assert not all(flags.all() for flags in read.values())
    for name, t in found.items():
        np.testing.assert_array_equal(read[name], first[name] > least)
        np.testing.assert_array_equal(t, np.where(first[name] > least, after[name], -np.inf))


def test_thinned_text_is_some_of_it_and_all_else_stays(states: dict[str, np.ndarray]) -> None:
    quarter = thinned(states, 0.25, 0)
    assert {n: len(x) for n, x in quarter.items() if "asked" in n} == dict.fromkeys(
        [f"fit-asked-{kind}" for kind in KINDS], 15
    )
    assert quarter["fit-image-harmless"] is states["fit-image-harmless"]
    rows = {row.tobytes() for row in states["fit-text-harmful"]}
    drawn = {row.tobytes() for row in quarter["fit-text-harmful"]}
    assert len(drawn) == 10
    assert drawn < rows
    assert drawn != {row.tobytes() for row in thinned(states, 0.25, 1)["fit-text-harmful"]}
    np.testing.assert_array_equal(
        thinned(states, 1.0, 5)["fit-text-harmful"], states["fit-text-harmful"]
    )
