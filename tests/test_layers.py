"""The choice of a block, on scores and on a model of numpy alone."""

from __future__ import annotations

import numpy as np
import pytest
from toys import Toy

from mars_gguf.convert.geometry import Centroids, RefusalScore
from mars_gguf.convert.layers import (
    Answered,
    LayerScores,
    candidates,
    effect,
    forced_refusals,
    separation,
)
from mars_gguf.convert.observations import Observations
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError
from mars_gguf.statistics import auroc

SORRY = RefusalScore(np.array([1.0, 0.0]), 0.0, 1.0)
BASE = Centroids(np.zeros((6, 4)), np.ones((6, 4)))


def answered(prompts: list[Prompt]) -> Answered:
    return Answered(prompts, np.zeros((len(prompts), 6)))


def test_where_no_block_has_headroom_the_best_separation_decides() -> None:
    separation = np.array([np.nan, 0.6, 0.9, 0.8])
    scores = LayerScores(
        separation, {"text": np.array([3.0, 2, 2, 2])}, np.array([np.nan, 1, 0, 0])
    )
    assert scores.best == 2


def test_headroom_is_what_the_worst_modality_leaves() -> None:
    thresholds = {"text": np.array([0.2, -1, 0.5]), "image": np.array([0.1, -2, 1.5])}
    scores = LayerScores(np.ones(3), thresholds, np.ones(3))
    np.testing.assert_allclose(scores.headroom, [0.8, 1, 0])
    assert scores.best == 1


def test_candidates_end_at_four_fifths_of_the_depth_unless_said_otherwise() -> None:
    assert candidates(30, None) == list(range(1, 25))
    assert candidates(2, None) == [1]
    assert candidates(30, (20, 29)) == list(range(20, 30))
    for layers in ((0, 3), (5, 4), (3, 30)):
        with pytest.raises(MarsError, match="expected a range within 1 to 29"):
            candidates(30, layers)


def test_separation_is_measured_at_the_candidates_alone() -> None:
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(1, 1, (9, 4)), rng.normal(0, 1, (7, 4))
    found = separation(harmful, harmless, [1, 2])
    assert np.isnan(found[[0, 3]]).all()
    assert found[1] == auroc(harmful[:, 1], harmless[:, 1])


def test_a_sample_of_answered_prompts_is_spread_over_all_of_them() -> None:
    prompts = [Prompt(str(i), form=str(i // 10)) for i in range(100)]
    sample = Answered(prompts, np.arange(100.0)[:, None]).sample(20)
    assert len({p.text for p in sample.prompts}) == 20
    assert {p.form for p in sample.prompts} == {str(i) for i in range(10)}
    assert sample.t[:, 0].tolist() == [float(p.text) for p in sample.prompts]
    assert answered(prompts[:3]).sample(1000).t.shape == (3, 6)
    assert answered([]).sample(5).t.shape == (0, 6)


def test_answered_are_those_whose_first_token_looks_like_no_refusal() -> None:
    prompts = [Prompt("a"), Prompt("b"), Prompt("c")]
    seen = Observations(prompts, np.zeros((3, 6, 4), np.float32), np.array([0.1, 0.9, 0.4]))
    kept = Answered.of(seen, np.arange(18.0).reshape(3, 6), SORRY)
    assert [p.text for p in kept.prompts] == ["a", "c"]
    assert kept.t[:, 0].tolist() == [0, 12]


def test_the_effect_is_that_of_the_modality_that_yields_least() -> None:
    """The model refuses every third prompt, and all at block 2."""
    toy = Toy({"harmful": 1, "harmless": 3}, pliable=(2,))
    some = answered([Prompt(f"harmless {i}") for i in range(12)])
    none = answered([Prompt(f"harmless {3 * i + 1}") for i in range(12)])
    found = effect(toy, {"text": some, "image": none}, BASE, SORRY, [1, 2], False)
    np.testing.assert_array_equal(found, [np.nan, 0, 1, np.nan, np.nan, np.nan])
    places = [(1, 2.0), (2, 2.0)]
    rates = forced_refusals(toy, {"text": some}, BASE, SORRY, places, title="", progress=False)
    np.testing.assert_allclose(rates, [4 / 12, 1])


def test_where_nothing_is_answered_nothing_is_an_effect() -> None:
    toy = Toy({"harmful": 1, "harmless": 1}, pliable=(1,))
    assert effect(toy, {"text": answered([])}, BASE, SORRY, [1], False)[1] == 0
