from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf.convert.geometry import (
    Array,
    Axes,
    Centroids,
    centroids,
    coordinates,
    readout,
    robust_shift,
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
@given(seeds, st.floats(0.01, 1), st.integers(2, 40))
def test_the_readout_solves_the_regularised_problem_directly_stated(seed, shrinkage, n_embd):
    _, base, deviations = world(seed, n_embd)
    w = readout(base, deviations, shrinkage)
    for layer, r in enumerate(base.direction):
        c = covariance(deviations, layer)
        mean = np.trace(c) / n_embd * np.eye(n_embd)
        direct = np.linalg.solve((1 - shrinkage) * c + shrinkage * mean, r)
        np.testing.assert_allclose(w[layer], direct / (direct @ r), rtol=1e-6, atol=1e-9)
        assert w[layer] @ r == pytest.approx(1)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 0.99), st.floats(-1, 2))
def test_the_readout_tells_harmful_text_from_what_is_neutral_and_never_points_away_from_harm(
    seed, shrinkage, reached
):
    rng, base, deviations = world(seed)
    neutral = base.safe + reached * base.direction + rng.normal(size=base.safe.shape)
    w = readout(base, deviations, shrinkage, neutral)
    plain = readout(base, deviations, shrinkage)
    for layer, r in enumerate(base.direction):
        c = covariance(deviations, layer)
        mean = np.trace(c) / len(r) * np.eye(len(r))
        solved = (1 - shrinkage) * c + shrinkage * mean
        direct = np.linalg.solve(solved, base.unsafe[layer] - neutral[layer])
        expected = direct / (direct @ r) if direct @ r > 0 else plain[layer]
        np.testing.assert_allclose(w[layer], expected, rtol=1e-5, atol=1e-7)
        assert w[layer] @ r == pytest.approx(1)


class Shrunken:
    """A covariance as scikit-learn estimates one, shrunken to the mean variance."""

    def __init__(self, shrinkage):
        self.shrinkage = shrinkage

    def fit(self, x):
        from sklearn.covariance import shrunk_covariance

        self.covariance_ = shrunk_covariance(np.cov(x.T, bias=True), self.shrinkage)
        return self


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 0.5])
def test_the_readout_of_two_classes_is_scikit_learn_s_discriminant(shrinkage):
    sklearn = pytest.importorskip("sklearn.discriminant_analysis")
    _, base, (deviations, _) = world(3)
    w = readout(base, [deviations], shrinkage)
    for layer, r in enumerate(base.direction):
        sides = [deviations[:, layer] + side[layer] for side in (base.safe, base.unsafe)]
        fisher = sklearn.LinearDiscriminantAnalysis(
            "lsqr", covariance_estimator=Shrunken(shrinkage)
        )
        fisher.fit(np.concatenate(sides), np.repeat([0, 1], len(deviations)))
        np.testing.assert_allclose(w[layer], fisher.coef_[0] / (fisher.coef_[0] @ r), rtol=1e-5)


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
    assert np.isnan(readout(base, deviations, 0.5, base.safe - 1)[0]).all()


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


@given(seeds)
def test_the_geometry_of_a_block_says_of_a_state_what_the_axes_say(seed):
    rng, base, deviations = world(seed)
    shift = rng.normal(size=(N_LAYER, 5))
    axes = Axes(base, readout(base, deviations), {"text": 0 * shift, "image": shift})
    states = rng.normal(size=(3, N_LAYER, 5))
    thresholds = {"text": 0.3, "image": -0.1}
    for layer in range(N_LAYER):
        g = axes.at(layer, {"text": 0.1, "image": 0.2}, thresholds, 0.5, 2.0)
        assert (g.thresholds, g.gate_ramp, g.trust_limit) == (thresholds, 0.5, 2.0)
        assert {x.dtype for x in (g.safe, g.unsafe, g.readout, *g.shifts.values())} == {
            np.dtype("f4")
        }
        for m in ("text", "image"):
            found = [g.coordinate(h[layer], m) for h in states]
            np.testing.assert_allclose(found, axes.t(states, m)[:, layer], rtol=1e-4, atol=1e-4)
