from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mars_gguf.steering import (
    BUDGET,
    Array,
    Decision,
    Geometry,
    Policy,
    coordinate,
    further,
    gate,
    projection,
    strength,
)

untimed = settings(deadline=None)  # the machine may be busy

positive = st.floats(0.01, 10)
seeds = st.integers(0, 2**32)


def states(n_embd: int) -> st.SearchStrategy[Array]:
    return hnp.arrays(np.float64, n_embd, elements=st.floats(-100, 100, width=32))


@st.composite
def situations(draw: st.DrawFn) -> tuple[Geometry, Array]:
    """A geometry with any read-out that has <w, r> = 1, and a hidden state."""
    n_embd = draw(st.integers(1, 12))
    safe, r, tilt, shift, h = (draw(states(n_embd)) for _ in range(5))
    assume(float(np.linalg.norm(r)) > 0.1)
    plain = projection(r)
    tilt = tilt - (tilt @ r) * plain  # across r
    geometry = Geometry(
        safe=safe,
        unsafe=safe + r,
        readout=plain + tilt / (100 * float(np.linalg.norm(r))),
        shifts={"text": np.zeros(n_embd), "image": shift},
        spreads={"text": draw(positive), "image": draw(positive)},
        thresholds={"text": draw(st.floats(-10, 10)), "image": draw(st.floats(-10, 10))},
        gate_ramp=draw(positive),
        trust_limit=draw(positive),
    )
    return geometry, h


def decide(h: Array, g: Geometry, modality: str) -> Decision:
    return Policy("mars", 1, g).decide(h, modality)


def steering_vector(g: Geometry, alpha: float) -> Array:
    return Policy("mars", 1, g).push(alpha)


def where(h: Array, g: Geometry, modality: str) -> float:
    return float(coordinate(h - g.shifts[modality], g.safe, g.readout))


def test_a_state_half_way_up_the_ramp_is_pushed_half_of_the_way_to_the_limit():
    g = Geometry(
        safe=np.array([1.0, 0.0]),
        unsafe=np.array([5.0, 0.0]),
        readout=np.array([0.25, 0.0]),
        shifts={"image": np.array([10.0, -3.0])},
        spreads={"image": 0.1},
        thresholds={"image": 0.2},
        gate_ramp=1.0,
        trust_limit=1.5,
    )
    found = decide(np.array([12.0, 7.0]), g, "image")
    assert (found.t, found.z, found.gate, found.alpha) == pytest.approx((0.25, 0.5, 0.5, 2.5))
    np.testing.assert_allclose(steering_vector(g, found.alpha), [2.5, 0])


@untimed
@given(situations())
def test_a_decision_is_what_the_formulas_say_one_after_the_other(situation):
    g, h = situation
    for modality, spread in g.spreads.items():
        found, t = decide(h, g, modality), where(h, g, modality)
        rounding = 1e-9 * (1 + np.linalg.norm(g.readout) * 100 * len(h))
        assert found.t == pytest.approx(t, abs=rounding)
        assert found.z == (found.t - g.thresholds[modality]) / spread
        assert found.gate == np.clip(found.z / g.gate_ramp, 0, 1)
        some = np.array([found.t, 0.5]), np.array([found.gate, 0.5])
        assert found.alpha == strength(*some, g.distance, g.trust_limit)[0]


@untimed
@given(situations())
def test_steering_only_ever_adds_refusal_and_stops_at_the_limit(situation):
    g, h = situation
    for modality in g.spreads:
        found = decide(h, g, modality)
        assert found.alpha >= 0
        assert 0 <= found.gate <= 1
        steered = where(h + steering_vector(g, found.alpha), g, modality)
        rounding = 1e-6 * (1 + np.linalg.norm(g.readout) * found.alpha)
        assert found.t - rounding <= steered <= max(found.t, g.trust_limit) + rounding
        if found.gate == 1 and found.t < g.trust_limit:
            assert steered == pytest.approx(g.trust_limit, abs=rounding)


@untimed
@given(st.lists(st.floats(-100, 100), min_size=1), positive)
def test_the_gate_is_shut_at_the_threshold_open_a_ramp_later_and_never_falls(zs, ramp):
    z = np.sort(np.asarray(zs))
    s = np.array([gate(x, ramp) for x in z])
    assert not s[z <= 0].any()
    assert np.allclose(s[z >= ramp], 1, rtol=0, atol=1e-9)
    within = (z > 0) & (z < ramp)
    np.testing.assert_allclose(s[within], z[within] / ramp)
    assert (np.diff(s) >= 0).all()
    assert ((s >= 0) & (s <= 1)).all()


@untimed
@given(situations())
def test_each_gate_opens_just_above_the_threshold_of_its_own_modality(situation):
    g, h = situation
    for modality, threshold in g.thresholds.items():
        found = decide(h, g, modality)
        assert (found.gate > 0) == (found.t > threshold)


@untimed
@given(situations(), positive)
def test_a_gate_that_is_held_changes_the_strength_and_not_what_is_measured(situation, fixed):
    g, h = situation
    measured = Policy("mars", 1, g)
    free = measured.decide(h, "image")
    shut, wide, constant = (
        replace(measured, gate=gate, strength=strength).decide(h, "image")
        for gate, strength in (("shut", None), ("open", None), ("open", fixed))
    )
    assert {one.t for one in (free, shut, wide, constant)} == {free.t}
    assert (shut.gate, shut.alpha) == (0, 0)
    assert wide.alpha == strength(free.t, 1.0, g.distance, g.trust_limit)
    assert constant.alpha == pytest.approx(fixed * g.distance)


@untimed
@given(situations(), states(12))
def test_a_push_along_another_direction_is_as_long_and_opened_by_the_same_states(
    situation, direction
):
    g, h = situation
    direction = direction[: len(h)]
    assume(float(np.linalg.norm(direction)) > 0.1)
    other = g.pushing_along(direction)
    assert other.distance == pytest.approx(g.distance, rel=1e-6)
    assert abs(other.unit @ direction) == pytest.approx(np.linalg.norm(direction), rel=1e-6)
    one, two = (decide(h, each, "image") for each in (g, other))
    assert (two.t, two.gate) == (one.t, one.gate)
    assert two.alpha == pytest.approx(one.alpha, rel=1e-6)


@untimed
@given(situations())
def test_a_film_is_judged_as_pictures_are_where_no_film_was_measured(situation):
    g, h = situation
    assert decide(h, g, "video") == decide(h, g, "image")


@untimed
@given(situations())
def test_the_safe_centroid_lies_at_0_and_the_unsafe_one_at_1_for_every_readout(situation):
    g, h = situation
    for readout in (g.readout, projection(g.direction)):
        ends = coordinate(np.stack([g.safe, g.unsafe]), g.safe, readout)
        np.testing.assert_allclose(ends, [0, 1], atol=1e-9)
    along = h - g.safe - coordinate(h, g.safe, projection(g.direction)) * g.direction
    assert along @ g.direction == pytest.approx(0, abs=1e-6 * g.distance)


@pytest.mark.filterwarnings("ignore:invalid value")
@untimed
@given(situations(), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_a_state_that_is_not_finite_is_neither_judged_nor_steered(situation, bad, data):
    g, h = situation
    h[data.draw(st.integers(0, len(h) - 1))] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        decide(h, g, "text")


@untimed
@given(situations())
def test_a_modality_without_a_measured_shift_is_refused(situation):
    g, h = situation
    g = replace(g, spreads={"text": g.spreads["text"]})
    with pytest.raises(KeyError, match="image"):
        decide(h, g, "image")


def test_coinciding_centroids_give_no_projection():
    with pytest.raises(ZeroDivisionError, match="coincide"):
        projection(np.zeros(3))


def test_another_system_prompt_than_the_measured_one_is_remarked_on():
    geometry = Geometry(*(np.eye(2)[i] for i in (0, 1, 1)), {}, {}, {}, 1.0, 1.0)
    policy = Policy("mars", 1, geometry, system_prompt="Be kind.")
    assert policy.caution(" Be kind. ") is None
    assert "another is in use" in str(policy.caution("Be brief."))
    assert "none is in use" in str(policy.caution(None))
    assert replace(policy, system_prompt=None).caution("Be brief.") is None


@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_the_largest_of_several_exceeds_the_higher_threshold_about_as_often_as_one(n):
    drawn = np.random.default_rng(n).normal(size=(200_000, n)).max(axis=1)
    bound = NormalDist().inv_cdf(1 - BUDGET)
    assert (drawn > bound + further(n)).mean() == pytest.approx(BUDGET, abs=0.003)


@untimed
@given(situations(), states(12), st.integers(2, 4))
def test_pictures_apart_open_the_gate_and_the_strength_keeps_to_the_whole_prompt(
    situation, other, n
):
    g, h = situation
    other = other[: len(h)]
    policy = Policy("mars", 1, g)
    whole, one = policy.decide(h, "image"), policy.decide(other, "image")
    found = policy.decide(h, "image", [(h, "image")] * (n - 1) + [(other, "image")])
    higher = one.z - further(n)
    assert found.z == max(whole.z, higher)
    assert found.isolated == (n - 1 if higher > whole.z else None)
    assert found.t == (one.t if higher > whole.z else whole.t)
    assert found.alpha == (
        strength(whole.t, found.gate, g.distance, g.trust_limit) if found.gate else 0
    )
    shut = replace(policy, gate="shut").decide(h, "image", [(other, "image")] * n)
    assert (shut.gate, shut.alpha) == (0, 0)
