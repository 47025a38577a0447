"""The choice of a block, on scores and on a model of numpy alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import N_EMBD, N_LAYER, REFUSAL, SORRY, Toy

from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.geometry import Centroids
from mars_gguf.convert.layers import (
    TRIED,
    LayerScores,
    Trial,
    candidates,
    force,
    score_layers,
)
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.refusals import Refusals
from mars_gguf.errors import MarsError

BASE = Centroids(np.zeros((N_LAYER, N_EMBD)), np.ones((N_LAYER, N_EMBD)))  # 2 apart
JUDGED = Refusals({SORRY: 1.0}, judged=True)
nan = np.nan


def ignored(_: int) -> None:
    pass


def scores(reach: list[float], effect: list[float], **thresholds: list[float]) -> LayerScores:
    found = {m: np.array(t) for m, t in (thresholds or {"text": [0.0] * len(reach)}).items()}
    return LayerScores(np.ones(len(reach)), found, np.array(reach), np.array(effect))


def trial(n: int, side: str = "harmless", t: float = 0.0) -> Trial:
    return Trial([Prompt(f"{side} {i}") for i in range(n)], np.full((n, N_LAYER), t))


def test_blocks_alike_are_ranked_by_the_worst_of_their_thresholds_even_without_effect() -> None:
    text, image = [nan, 0.5, 0.1, 0.2, 0.3], [nan, 0.1, 0.6, 0.3, 0.1]
    found = scores([nan, 1, 1, 1, 0.9], [nan, 0, 0, 0, 0], text=text, image=image)
    assert found.ranked() == [3, 1, 2, 4]
    assert found.best == 3


def test_candidates_are_all_blocks_but_the_first_unless_said_otherwise() -> None:
    assert candidates(30, None) == list(range(1, 30))
    assert candidates(2, None) == [1]
    assert candidates(30, (20, 29)) == list(range(20, 30))
    for layers in ((0, 3), (5, 4), (3, 30)):
        with pytest.raises(MarsError, match="expected a range within 1 to 29"):
            candidates(30, layers)


@given(st.integers(0, 2**32), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_scores_count_what_lies_above_all_but_a_share_of_neutral_inputs(
    seed: int, of_text: float, of_images: float
) -> None:
    rng = np.random.default_rng(seed)
    budgets = {"text": of_text, "image": of_images}
    harmful = rng.normal(1, 1, (9, 4))
    neutral = {"text": rng.normal(0, 1, (70, 4)), "image": rng.normal(0.5, 1, (50, 4))}
    found = score_layers(harmful, neutral, [1, 3], budgets)
    for layer in range(4):
        if layer not in (1, 3):
            assert np.isnan([found.separation[layer], found.reach[layer]]).all()
            continue
        shares = []
        for m, t in neutral.items():
            place = (1 - budgets[m]) * (len(t) - 1)  # of the quantile, between two of the sorted
            low, high = sorted(t[:, layer])[int(place) : int(place) + 2]
            threshold = found.thresholds[m][layer]
            assert threshold == pytest.approx(low + (place % 1) * (high - low))
            shares.append(sum(harmful[:, layer] > threshold) / 9)
        assert found.reach[layer] == pytest.approx(np.mean(shares))
        pairs = [h > n for h in harmful[:, layer] for n in neutral["text"][:, layer]]
        assert found.separation[layer] == pytest.approx(np.mean(pairs))
    assert np.isnan(found.effect).all()


def test_a_sample_of_a_trial_is_spread_over_all_of_it() -> None:
    prompts = [Prompt(str(i), form=str(i // 10)) for i in range(100)]
    sample = Trial(prompts, np.arange(100.0)[:, None]).sample()
    assert len({p.text for p in sample.prompts}) == TRIED
    assert {p.form for p in sample.prompts} == {str(i) for i in range(10)}
    assert sample.t[:, 0].tolist() == [float(p.text) for p in sample.prompts]
    assert len(Trial(prompts[:3], np.zeros((3, 1))).sample().prompts) == 3


@pytest.mark.parametrize(
    ("forced", "refusals", "effect"),
    [
        (REFUSAL, JUDGED, 1.0),
        ("I I I I I I", JUDGED, 0.0),  # begins like a refusal and is none
        ("I I I I I I", Refusals({SORRY: 0.9}, judged=False), 1.0),  # nothing but tokens to go by
    ],
)
def test_forced_steering_is_judged_by_replies_where_they_can_be_judged(
    forced: str, refusals: Refusals, effect: float
) -> None:
    toy = Toy({}, pliable={2: 0.0}, forced=forced)
    done: list[int] = []
    found = force(toy, [trial(12)], BASE, refusals, [(1, 2.0), (2, 2.0)], done.append)
    assert sum(done) == 2 * 12
    assert [place.rate for place in found] == [0.0, effect]
    assert found[0].replies == [toy.reply(p) for p in trial(12).prompts]
    assert found[1].replies == [Opening(SORRY, forced)] * 12


def test_the_rate_is_that_of_the_trial_that_yields_least_and_replies_are_of_the_first() -> None:
    """The toy refuses 30 % of what is odd by itself."""
    toy = Toy({"odd": 0.3}, pliable={2: 0.0})
    trials, places = [trial(100, "odd"), trial(20)], [(1, 2.0), (2, 2.0)]
    found = force(toy, trials, BASE, JUDGED, places, ignored)
    assert [place.rate for place in found] == [0.0, 1.0]
    assert [reply.token for reply in found[0].replies].count(SORRY) == 30
    alone = force(toy, trials[:1], BASE, JUDGED, places, ignored)
    assert [place.rate for place in alone] == [0.3, 1.0]


@pytest.mark.parametrize(
    ("t", "limit", "length"), [(0.0, 1.5, 3.0), (0.5, 2.0, 3.0), (1.5, 1.0, 0.0), (-1.0, 1.0, 4.0)]
)
def test_a_forced_push_goes_to_the_limit_and_never_back(
    t: float, limit: float, length: float
) -> None:
    """The centroids are 2 apart; the toy gives in to a push longer than ``least`` at block 3."""
    for least, expected in ((0.99 * length, float(length > 0)), (1.01 * length, 0.0)):
        toy = Toy({}, pliable={3: least})
        places = [(3, limit), (2, limit)]
        found = force(toy, [trial(9, t=t)], BASE, JUDGED, places, ignored)
        assert [place.rate for place in found] == [expected, 0.0]
