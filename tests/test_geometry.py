from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf.convert.geometry import (
    Array,
    Axes,
    Centroids,
    RefusalScore,
    centroids,
    coordinates,
    posterior_weights,
    readout,
    robust_shift,
    softmax,
)
from mars_gguf.steering import projection

N_LAYER = 2
seeds = st.integers(0, 2**32)


def world(seed: int, n_embd: int = 5) -> tuple[np.random.Generator, Centroids, list[Array]]:
    """Centroids of random states, and deviations of two modalities, unlike in size and count."""
    rng = np.random.default_rng(seed)
    harmless = rng.normal(size=(9, N_LAYER, n_embd))
    harmful = 2 + rng.normal(size=(11, N_LAYER, n_embd))
    deviations = []
    for n in (7, 12):
        stretched = rng.normal(size=(n, N_LAYER, n_embd)) * rng.uniform(0.1, 5, n_embd)
        deviations.append(stretched - stretched.mean(0))
    return rng, centroids(harmless, harmful), deviations


def covariance(deviations: list[Array], layer: int) -> Array:
    """Of every modality, then the mean of the modalities: a large set does not outvote a small."""
    return np.mean([np.cov(d[:, layer].T, bias=True) for d in deviations], axis=0)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 10), st.integers(2, 40))
def test_the_readout_solves_the_regularised_problem_directly_stated(seed, shrinkage, n_embd):
    _, base, deviations = world(seed, n_embd)
    w = readout(base, deviations, shrinkage)
    for layer, r in enumerate(base.direction):
        c = covariance(deviations, layer)
        ridge = shrinkage * np.trace(c) / n_embd
        direct = np.linalg.solve(c + ridge * np.eye(n_embd), r)
        np.testing.assert_allclose(w[layer], direct / (direct @ r), rtol=1e-6, atol=1e-9)
        assert w[layer] @ r == pytest.approx(1)


@settings(deadline=None)
@given(seeds, st.integers(2, 8))
def test_no_other_readout_of_unit_gain_is_moved_less_by_neutral_inputs(seed, n_embd):
    rng, base, deviations = world(seed, n_embd)
    w = readout(base, deviations, shrinkage=1e-6)
    for layer, r in enumerate(base.direction):
        c = covariance(deviations, layer)
        others = rng.normal(size=(50, n_embd)) * rng.choice([1e-3, 0.1, 1])
        others += np.outer(1 - others @ r, projection(r))  # <w, r> = 1, near the projection
        near = w[layer] + 1e-2 * (others - projection(r))  # and near the optimum
        least = w[layer] @ c @ w[layer]
        for other in [projection(r), *others, *near]:
            assert other @ r == pytest.approx(1)
            assert least <= other @ c @ other * (1 + 1e-3) + 1e-6 * np.trace(c) * other @ other


@given(seeds)
def test_without_deviations_the_readout_is_the_projection(seed):
    _, base, deviations = world(seed)
    found = readout(base, [0 * d for d in deviations])
    np.testing.assert_allclose(found, [projection(r) for r in base.direction])


def test_the_readout_is_undefined_where_the_centroids_coincide_and_only_there():
    _, base, deviations = world(0)
    base.unsafe[0] = base.safe[0]
    w = readout(base, deviations)
    assert np.isnan(w[0]).all()
    assert np.isfinite(w[1]).all()


@given(seeds, st.lists(st.sampled_from("abcd"), min_size=1, max_size=20))
def test_a_shift_lies_at_the_median_of_its_strata_and_keeps_the_mean_across(seed, strata):
    rng, base, deviations = world(seed)
    w = readout(base, deviations)
    probes = base.safe + rng.normal(size=(len(strata), N_LAYER, 5))
    shift = robust_shift(probes, strata, base, w)

    t = coordinates(probes, base, w)
    by_stratum = [[t[i] for i, s in enumerate(strata) if s == name] for name in set(strata)]
    medians = np.median([np.mean(found, axis=0) for found in by_stratum], axis=0)
    np.testing.assert_allclose(coordinates((base.safe + shift)[None], base, w)[0], medians)

    moved = shift - (probes.mean(0) - base.safe)
    for layer, r in enumerate(base.direction):
        np.testing.assert_allclose(moved[layer], (moved[layer] @ projection(r)) * r, atol=1e-9)


@given(seeds, st.integers(1, 5))
def test_where_all_strata_agree_the_shift_is_the_plain_mean(seed, n_strata):
    rng, base, deviations = world(seed)
    w = readout(base, deviations)
    one = base.safe + rng.normal(size=(4, N_LAYER, 5))
    strata = [name for name in "abcde"[:n_strata] for _ in one]
    shift = robust_shift(np.concatenate([one] * n_strata), strata, base, w)
    np.testing.assert_allclose(shift, one.mean(0) - base.safe, atol=1e-12)


def test_one_odd_stratum_does_not_move_the_coordinate_of_the_shift():
    rng, base, deviations = world(1)
    w = readout(base, deviations)
    probes = base.safe + 1e-3 * rng.normal(size=(30, N_LAYER, 5))
    strata = ["noise"] * 10 + ["drawn"] * 10 + ["odd"] * 10
    calm = coordinates((base.safe + robust_shift(probes, strata, base, w))[None], base, w)
    probes[20:] += 100 * base.direction
    odd = coordinates((base.safe + robust_shift(probes, strata, base, w))[None], base, w)
    np.testing.assert_allclose(odd, calm, atol=0.02)


@given(seeds, st.integers(2, 40))
def test_token_weights_are_posteriors_and_swapping_the_sides_mirrors_them(seed, n_vocab):
    rng = np.random.default_rng(seed)
    harmful, harmless = softmax(rng.normal(0, 5, size=(2, n_vocab)))
    assert [harmful.sum(), harmless.sum()] == pytest.approx([1, 1])
    weights, mirrored = posterior_weights(harmful, harmless), posterior_weights(harmless, harmful)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[harmful > harmless] > mirrored[harmful > harmless]).all()
    assert (weights + mirrored <= 1 + 1e-12).all()
    common = harmful + harmless > 0.1
    np.testing.assert_allclose((weights + mirrored)[common], 1, atol=0.01)
    rare = harmful + harmless < 1e-6
    assert (weights[rare] < 1e-2).all()


@given(st.floats(0, 0.5), st.floats(0.01, 0.5), st.floats(0, 1))
def test_refusal_scores_run_from_0_for_harmless_to_1_for_harmful(low, contrast, share):
    score = RefusalScore(np.ones(2), low, low + contrast)
    np.testing.assert_allclose(score(np.array([low, low + contrast])), [0, 1], atol=1e-9)
    between = np.array(low + share * score.contrast)
    assert score(between) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("high", [0.5, 0.2])
def test_without_contrast_every_refusal_score_is_0(high):
    assert not RefusalScore(np.ones(2), 0.5, high)(np.array([[0.1, 0.5], [0.9, 1.0]])).any()


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_logits_are_judged_by_the_weight_of_their_likeliest_tokens(sorry):
    score = RefusalScore(np.array([0.9, 0.1]), 0.1, 0.9)
    logits = np.array([[9.0, 0.0] if one else [0.0, 9.0] for one in sorry])
    assert score.refuses(logits).tolist() == sorry


@given(seeds)
def test_the_geometry_of_a_block_says_of_a_state_what_the_axes_say(seed):
    rng, base, deviations = world(seed)
    shift = rng.normal(size=(N_LAYER, 5))
    axes = Axes(base, readout(base, deviations), {"text": 0 * shift, "image": shift})
    states = rng.normal(size=(3, N_LAYER, 5))
    for layer in range(N_LAYER):
        g = axes.at(layer, {"text": 0.1, "image": 0.2}, 3.0, 0.5, 2.0)
        assert {x.dtype for x in (g.safe, g.unsafe, g.readout, *g.shifts.values())} == {
            np.dtype("f4")
        }
        for m in ("text", "image"):
            found = [g.coordinate(h[layer], m) for h in states]
            np.testing.assert_allclose(found, axes.t(states, m)[:, layer], rtol=1e-4, atol=1e-4)
