"""What policies decide of a prompt, and what is reported of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import (
    FILM,
    IMAGE,
    PICTURES,
    TEXT,
    Logits,
    both_ways,
    chat,
    complete,
    expected_t,
    stream,
    words_of_demo,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    DEMO,
    DEMO_MMPROJ,
    OPTIONS,
    Messages,
    RandomModel,
    plain,
    steered,
    tapped,
    vector,
)

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.judging import Seen, Steering, blocks_of, judge, steering_of
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Geometry, Policy, projection


@pytest.mark.parametrize(
    ("messages", "modality"),
    [(TEXT, "text"), (IMAGE, "image"), (PICTURES, "image"), (FILM, "video")],
    ids=["text", "image", "pictures", "film"],
)
@both_ways
def test_the_report_agrees_with_an_independent_computation(
    messages: Messages, modality: str, way: str
) -> None:
    given = vector(DEMO)
    llama = steered(DEMO, given, mmproj=DEMO_MMPROJ, way=way)
    measuring = tapped(DEMO, chat_handler=plain_handler(), **OPTIONS)
    states: list[Logits] = []
    with measuring.tap.visiting([given.layer], lambda o: states.append(o.read()[-1])):
        # Plain llama-cpp-python knows no films: their frames lie in a prompt as pictures do.
        shown = PICTURES if messages == FILM else messages
        measuring.create_chat_completion(shown, max_tokens=1)
    for reply in (chat(llama, messages)[1], stream(llama, messages)[1]):
        if isinstance(reply, list):
            assert [("mars" in chunk) for chunk in reply] == [False] * (len(reply) - 1) + [True]
        report = (reply[-1] if isinstance(reply, list) else reply)["mars"]
        g = given.geometry
        t = expected_t(given, states[-1], modality)
        assert report["t"] == pytest.approx(t, abs=1e-3)
        z = (report["t"] - g.thresholds[modality]) / g.spreads[modality]
        assert report["z"] == pytest.approx(z)
        assert report["gate"] == 1.0
        assert report["alpha"] == pytest.approx((g.trust_limit - report["t"]) * g.distance)
        assert (report["modality"], report["way"]) == (modality, way)
        assert report["layer"] == given.layer
        assert report["milliseconds"] > 0
    assert report | {"policies": None, "picture": None} == vars(llama.last_steering)


def plain_handler() -> Any:
    return plain(DEMO, mmproj=DEMO_MMPROJ).chat_handler


@both_ways
def test_a_state_that_is_not_finite_raises_and_generates_nothing(tmp_path: Path, way: str) -> None:
    """One token of this model overflows."""
    model = RandomModel.llama(n_layer=3)
    model.weights["token_embd.weight"][words_of_demo()[0]] = np.inf
    path = model.write(tmp_path / "overflows.gguf")
    llama = steered(path, way=way)
    complete(llama, words_of_demo()[1:], 1)
    assert llama.last_steering is not None
    for _ in range(2):
        tokens = llama.generate(words_of_demo())
        with pytest.raises(SteeringError, match="NaN"):
            next(tokens)
        assert llama.last_steering is None
    model.weights["token_embd.weight"][:] = np.inf
    with pytest.raises(ModelError, match="cannot be steered"):
        steered(model.write(tmp_path / "always.gguf"), vector(path), force=True, way=way)


# Without a model ---------------------------------------------------------------------------------


def policy(name: str = "mars", block: int = 1, opens: float = 0.5, **options: Any) -> Policy:
    """A policy in two dimensions, where t is the first entry of a state over D."""
    distance, limit = options.pop("distance", 1.0), options.pop("limit", 2.0)
    r = np.array([distance, 0.0])
    measured = options.pop("measured", ("text", "image"))
    geometry = Geometry(
        np.zeros(2), r, projection(r), {m: np.zeros(2) for m in measured},
        dict.fromkeys(measured, 1.0), dict.fromkeys(measured, opens), 1.0, limit,
    )  # fmt: skip
    return Policy(name, block, geometry, **options)


def at(t: float, distance: float = 1.0) -> Rows:
    return np.array([t * distance, 3.0], np.float32)


numbers = st.floats(-4, 4, width=16)
several = st.lists(
    st.tuples(
        st.integers(1, 3), numbers, st.sampled_from([0.5, 1.0, 100.0]),
        st.sampled_from(["measured", "shut", "open"]), st.sampled_from([None, 0.0, 0.25, 3.0]),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(deadline=None)
@given(several, st.tuples(numbers, numbers, numbers))
def test_the_strongest_that_opens_is_followed_else_the_one_nearest_to_opening(
    rows: list[Any], ts: tuple[float, ...]
) -> None:
    policies = [
        policy(f"{n}", block, opens, distance=distance, gate=gate, strength=strength)
        for n, (block, opens, distance, gate, strength) in enumerate(rows)
    ]
    states = {block: at(t) for block, t in enumerate(ts, 1)}
    verdict = judge(policies, Seen(states, "text"))
    assert [one.policy for one in verdict.judged] == policies
    for one in verdict.judged:
        assert one.decision == one.policy.decide(states[one.policy.block], "text")
        assert one.opens == (one.decision.alpha > 0) == bool(one.push.any())
    opened = [one for one in verdict.judged if one.opens]
    for other in opened:
        ours, its = verdict.chosen, other
        assert ours.decision.alpha / ours.policy.geometry.distance >= (
            its.decision.alpha / its.policy.geometry.distance
        )
    if not opened:
        assert verdict.chosen.decision.z == max(one.decision.z for one in verdict.judged)


def test_each_policy_is_judged_by_the_state_of_its_own_block() -> None:
    policies = [policy("late", 5, opens=1.0), policy("early", 2, opens=1.0)]
    assert blocks_of([*policies, policy(block=2)]) == [2, 5]
    verdict = judge(policies, Seen({2: at(0.2), 5: at(1.8)}, "text"))
    assert [one.decision.t for one in verdict.judged] == pytest.approx([1.8, 0.2])
    assert verdict.chosen.policy.name == "late"
    report = steering_of(verdict, "inline", 0.002, "answer").report()
    assert (report["layer"], report["way"], report["position"]) == (5, "inline", "answer")
    assert report["milliseconds"] == 2
    assert list(report["policies"]) == ["late", "early"]
    assert report["policies"]["late"]["alpha"] == report["alpha"] > 0
    assert report["policies"]["early"] == {
        "t": pytest.approx(0.2), "z": pytest.approx(-0.8), "gate": 0.0, "alpha": 0.0, "layer": 2
    }  # fmt: skip


def test_a_single_policy_is_reported_by_itself() -> None:
    shut = steering_of(judge([policy()], Seen({1: at(0.1)}, "image")), "cvec", 0, "prompt")
    assert (shut.way, shut.alpha, shut.policies) == (None, 0.0, None)
    assert not {"policies", "note"} & shut.report().keys()
    unreached = Steering("text", None, None, None, 0.0, 1, None, 0.0, None)
    assert "before its answer began" in unreached.report()["note"]


@pytest.mark.parametrize(
    ("state", "modality", "error", "said"),
    [
        (at(0.1), "image", ModelError, r"media \(image\), .* measured on text only"),
        (at(0.1), "video", ModelError, r"media \(video\), .* measured on text only"),
        (at(np.nan), "text", SteeringError, "NaN or infinite entries. Nothing was generated"),
        (at(np.inf), "text", SteeringError, "NaN or infinite entries. Nothing was generated"),
    ],
)
def test_what_cannot_be_judged_is_an_error_whichever_policy_meets_it(
    state: Rows, modality: str, error: type[Exception], said: str
) -> None:
    policies = [policy("b", 2, measured=("text", "image")), policy("a", 1, measured=("text",))]
    with pytest.raises(error, match=said):
        judge(policies, Seen({1: state, 2: at(0.1)}, modality))
