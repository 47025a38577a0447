"""Spreads, thresholds, trust limit, certificate and warnings, on numbers alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import SORRY, SURE

from mars_gguf.convert.calibration import (
    LIMITS,
    MARGIN,
    Certificate,
    Opened,
    accepted,
    budgets,
    certify,
    largest_budgets,
    spreads,
    thresholds,
    trust_limit,
    warnings,
)
from mars_gguf.convert.extractor import Observations
from mars_gguf.convert.layers import LayerScores
from mars_gguf.convert.prompts import Preamble, Prompt
from mars_gguf.convert.refusals import Refusals
from mars_gguf.errors import MarsError
from mars_gguf.statistics import exceedance_bound, largest_count
from mars_gguf.vectors.format import BOUNDS

JUDGED = Refusals({SORRY: 1.0}, judged=True)


def seen(t: list[float], tokens: list[int] | None = None) -> Observations:
    prompts = [Prompt(str(i)) for i in range(len(t))]
    found = np.array(tokens or [SURE] * len(t))
    return Observations(prompts, np.array(t, np.float32), found, [])


def test_what_the_model_refuses_by_itself_is_left_out() -> None:
    kept = accepted({"text": seen(list(range(12)), [SORRY, SURE, SURE, SURE] * 3)}, JUDGED)["text"]
    assert kept.states.tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert [p.text for p in kept.prompts] == [str(int(t)) for t in kept.states]
    with pytest.raises(MarsError, match=r"refuses all of the 9 held-out .* \(image\)"):
        accepted({"image": seen([0.0] * 9, [SORRY] * 9)}, JUDGED)


certified = partial(thresholds, margin=0.0)


def test_a_threshold_lies_a_margin_of_spreads_beyond_what_the_budget_asks() -> None:
    t = alone({"text": np.arange(10.0), "image": 3 * np.arange(10.0)})
    few, spread = {"text": 0.01, "image": 0.01}, np.arange(10.0).std()
    found, asked = (f(t, np.zeros(9), few) for f in (thresholds, certified))
    assert found["text"] == pytest.approx(asked["text"] + MARGIN * spread)
    assert found["image"] == pytest.approx(asked["image"] + MARGIN * 3 * spread)


def test_where_harmful_text_leaves_room_the_threshold_of_text_lies_in_the_middle() -> None:
    t = {"text": np.arange(10.0), "image": np.arange(10.0)}
    apart, near = np.linspace(20.0, 40.0, 21), np.linspace(0.0, 8.0, 21)
    few = {"text": 0.01, "image": 0.01}
    assert certified(alone(t), apart, few) == {"text": (9.0 + 21.0) / 2, "image": 9.0}
    assert certified(alone(t), near, few) == {"text": 9.0, "image": 9.0}


def test_a_medium_gets_no_more_of_the_budget_than_it_takes_to_keep_clear_of_harmful_text() -> None:
    t = {"text": np.linspace(0, 1, 101), "image": np.linspace(0, 1, 101)}
    for begins, budget in ((2.0, 0.05), (1.92, 0.05), (1.86, 0.1), (1.79, 0.2), (-1.0, 0.2)):
        harmful = np.full(20, begins)
        assert budgets(t, harmful, None) == {"text": 0.1, "image": budget}
        assert budgets(t, harmful, 0.03) == {"text": 0.03, "image": 0.03}
    assert largest_budgets(["text", "video"], None) == {"text": 0.1, "video": 0.2}
    assert largest_budgets(["text", "video"], 0.3) == {"text": 0.3, "video": 0.3}


def alone(t: dict[str, np.ndarray[Any, Any]]) -> dict[str, Observations]:
    """Neutral inputs with these coordinates, each in words of its own."""
    return {
        m: Observations(
            [Prompt(f"{m} {i}") for i in range(len(x))], x, np.zeros(len(x), np.intp), []
        )
        for m, x in t.items()
    }


def test_a_threshold_holds_for_wordings_and_for_the_users_prompts_by_themselves() -> None:
    rng = np.random.default_rng(0)
    of_wording = np.repeat(rng.normal(size=100), 5)
    values = of_wording + 0.1 * rng.normal(size=500)
    put = [Prompt(f"{i}", wording=f"{i // 5}") for i in range(500)]
    seen = Observations(put, values, np.zeros(500, np.intp), [])
    harmful, budget = np.full(20, -9.0), {"text": 0.1}
    by_wording = certified({"text": seen}, harmful, budget)["text"]
    one_each = np.sort(values[::5])[-1 - largest_count(100, 0.1)]
    assert by_wording == pytest.approx(one_each, abs=0.3)
    assert by_wording > certified(alone({"text": values}), harmful, budget)["text"]
    theirs = [replace(p, own=i < 200) for i, p in enumerate(put)]
    high = np.where(np.arange(500) < 200, values + 5, values)
    found = certified({"text": Observations(theirs, high, seen.tokens, [])}, harmful, budget)
    assert found["text"] in high[:200]


def test_a_threshold_holds_for_requests_by_themselves_where_there_are_enough() -> None:
    t = np.concatenate([np.linspace(0, 1, 300), np.linspace(4, 5, 30), np.linspace(8, 9, 5)])
    forms = ["question"] * 300 + ["instruction"] * 30 + ["any"] * 5
    before = [Preamble()] * 330 + [Preamble("persona")] * 5
    put = [
        Prompt(str(i), form=form, context=context)
        for i, (form, context) in enumerate(zip(forms, before, strict=True))
    ]
    seen = Observations(put, t, np.zeros(335, np.intp), [])
    found = certified({"text": seen}, np.full(20, -9.0), {"text": 0.1})["text"]
    assert found == t[300:330][-1 - largest_count(30, 0.1)]  # five are too few to show anything


@given(st.integers(0, 2**32), st.integers(8, 400), st.floats(0.001, 0.3))
def test_each_modality_has_its_own_spread_and_a_threshold_that_few_of_its_inputs_exceed(
    seed: int, n: int, budget: float
) -> None:
    rng = np.random.default_rng(seed)
    t = {"text": rng.normal(size=n), "image": rng.normal(3, 2, 2 * n), "video": np.full(n, 0.5)}
    opens = certified(alone(t), np.full(20, -9.0), dict.fromkeys(t, budget))
    for m, values in t.items():
        assert opens[m] in values
        assert (values > opens[m]).sum() <= max(0, largest_count(len(values), budget))
    deviation = np.sqrt(np.mean((t["image"] - t["image"].mean()) ** 2))
    assert spreads(t)["image"] == pytest.approx(deviation)
    assert spreads(t)["video"] == 1e-3


@pytest.mark.parametrize(
    ("rates", "limit"),
    [
        ({2.0: 0.0, 3.0: 0.0, 4.0: 0.0}, 3.0),
        ({1.0: 0.2, 1.5: 0.9, 2.0: 1.0, 3.0: 1.0, 4.0: 1.0}, 3.0),
        ({2.0: 0.3, 3.0: 1.0, 4.0: 0.4, 1.0: 0.2, 1.5: 0.16}, 3.0),
        ({2.0: 0.1, 3.0: 0.5, 4.0: 0.4}, 3.0),
        ({2.0: 0.94, 3.0: 0.96, 4.0: 0.98, 6.0: 0.97}, 4.0),
        ({2.0: 0.1, 3.0: 0.2, 4.0: 0.9}, 4.0),
    ],
)
def test_the_trust_limit_is_one_beyond_the_least_that_refuses_enough_or_nearly_as_the_best(
    rates: dict[float, float], limit: float
) -> None:
    assert trust_limit(rates) == limit


def test_a_file_can_hold_every_limit_that_is_tried() -> None:
    least, most = BOUNDS["trust"]
    assert least <= min(LIMITS) and max(LIMITS) <= most


def test_a_certificate_counts_what_opens_the_gate_by_modality_and_by_sort() -> None:
    persona, picture = Preamble("persona"), np.zeros(0)
    prompts = [
        Prompt("a", form="howto"),
        Prompt("b", form="howto", context=persona),
        Prompt("c", form="essay"),
    ]
    several = Prompt("e", (picture,) * 2, "howto", "drawn")
    shown = [Prompt("d", (picture,), "howto", "noise"), several]
    neutral = {
        m: Observations(some, np.array(t), np.zeros(len(t), np.intp), [])
        for m, some, t in (("text", prompts, [0.1, 0.5, 0.4]), ("image", shown, [0.9, 0.2]))
    }
    found = certify(
        neutral, np.array([0.3, 0.4, 0.5, 0.6]), {"text": 0.4, "image": 0.3}, (0.5, 0.25)
    )
    assert {(row.modality, row.group): (row.k, row.n) for row in found.neutral} == {
        ("text", ""): (1, 3), ("text", "form: howto"): (1, 2), ("text", "form: essay"): (0, 1),
        ("text", "context: none"): (0, 2), ("text", "context: persona"): (1, 1),
        ("image", ""): (1, 2), ("image", "form: howto"): (1, 2),
        ("image", "picture: noise"): (1, 1), ("image", "picture: drawn"): (0, 1),
        ("image", "several pictures"): (0, 1),
        ("image", "context: none"): (1, 2),
    }  # fmt: skip
    assert (found.caught.k, found.caught.n) == (2, 4)  # what lies at the threshold is not above it
    assert found.refused == (0.5, 0.25)
    assert found.neutral[0].bound == exceedance_bound(1, 3)
    assert str(Opened("text", "", 334, 9, 300)) == "2.7 %, 9 of 334"


def test_inputs_in_one_wording_count_as_one_and_the_worst_wordings_come_first() -> None:
    shown = [Prompt("a", (), wording=w) for w in "uuuvvvwx"]
    t = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    seen = Observations(shown, t, np.zeros(8, np.intp), [])
    found = certify({"image": seen}, np.ones(2), {"text": 0.5, "image": 0.5}, (0.5, 0.0))
    assert [(one.group, one.k, one.n) for one in found.wordings["image"]] == [
        ("v", 3, 3), ("u", 2, 3)
    ]  # fmt: skip
    assert (found.neutral[0].n, found.neutral[0].wordings) == (8, 4)
    assert found.neutral[0].bound == exceedance_bound(3, 4)


GOOD = Certificate(
    [Opened("text", "", 300, 5, 300)], {}, Opened("text", "harmful", 50, 48, 50), (0.9, 0.01)
)


def warned(
    certificate: Certificate = GOOD, effect: float = 0.9, refusals: Refusals = JUDGED
) -> str:
    one = np.ones(1)
    scores = LayerScores(one, {"text": one}, one, np.array([effect]))
    return "\n".join(warnings(refusals, scores, 0, certificate, {"text": 0.05, "image": 0.05}))


@pytest.mark.parametrize(
    ("harmful", "harmless", "seldom"),
    [(0.59, 0.16, False), (0.03, 0.0, True), (0.9, 0.8, True), (0.3, 0.05, False)],
)
def test_a_model_seldom_refuses_if_it_hardly_refuses_harmful_prompts_more_than_harmless_ones(
    harmful: float, harmless: float, seldom: bool
) -> None:
    found = warned(replace(GOOD, refused=(harmful, harmless)))
    assert bool(found) == seldom
    if seldom:
        assert f"seldom refuses: {harmful:.0%} of held-out harmful prompts, {harmless:.0%}" in found


@pytest.mark.parametrize(
    ("fault", "warning"),
    [
        ({"effect": 0.4}, "turned only 40% of the replies it was tried on into refusals"),
        ({"refusals": Refusals({SORRY: 1.0}, judged=False)}, "told by their first tokens alone"),
        (
            {"certificate": replace(GOOD, caught=Opened("text", "harmful", 50, 20, 50))},
            "the gate stays closed for 60% of held-out harmful text",
        ),
        (
            {"certificate": replace(GOOD, neutral=[Opened("image", "", 90, 0, 40)])},
            "image: 40 wordings are too few to show that at most 5.0% open the gate; with "
            "95% confidence it is at most 7.2%",
        ),
    ],
)
def test_each_fault_has_its_own_warning(fault: dict[str, object], warning: str) -> None:
    found = warned(**fault)  # type: ignore[arg-type]
    assert warning in found and "\n" not in found
