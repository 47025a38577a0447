"""Spreads, gate, trust limit and warnings, on numbers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pytest
from toys import Toy, ToySession

from mars_gguf.convert.calibration import accepted, gate_opens, spreads, trust_limit, warnings
from mars_gguf.convert.geometry import Centroids, RefusalScore
from mars_gguf.convert.layers import Answered, LayerScores
from mars_gguf.convert.observations import Observations
from mars_gguf.convert.prompts import Prompt, Push, Rows
from mars_gguf.errors import MarsError
from mars_gguf.steering import Geometry, gate

SORRY = RefusalScore(np.array([1.0, 0.0]), 0.0, 1.0)
BASE = Centroids(np.zeros((6, 4)), np.ones((6, 4)))


def seen(scores: Sequence[float]) -> Observations:
    prompts = [Prompt(str(i)) for i in range(len(scores))]
    return Observations(prompts, np.zeros((len(scores), 6, 4), np.float32), np.asarray(scores))


def test_what_the_model_refuses_by_itself_is_left_out_where_that_can_be_told() -> None:
    checks = {"text": seen([0.1] * 9 + [0.9] * 3)}
    assert len(accepted(checks, SORRY)["text"].prompts) == 9
    faint = RefusalScore(SORRY.weights, 0.4, 0.5)
    assert len(accepted(checks, faint)["text"].prompts) == 12
    with pytest.raises(MarsError, match=r"the model answers \(text\): found 7"):
        accepted({"text": seen([0.1] * 7 + [0.9] * 9)}, SORRY)


def test_the_spread_of_text_is_that_of_the_wider_class_and_none_is_zero() -> None:
    narrow, wide = np.array([0.0, 0.1, 0.2]), np.array([0.0, 1.0, 2.0])
    found = spreads({"text": narrow, "image": narrow, "video": 0 * narrow}, wide)
    assert found == pytest.approx({"text": wide.std(), "image": narrow.std(), "video": 1e-3})
    assert spreads({"text": wide}, narrow)["text"] == pytest.approx(wide.std())


def test_no_gate_opens_below_its_threshold_and_one_opens_right_there() -> None:
    thresholds, spread = {"text": 0.3, "image": 0.9}, {"text": 0.1, "image": 0.5}
    opens = gate_opens(thresholds, spread)
    assert all(gate(thresholds[m], spread[m], opens, 0.5) == 0 for m in spread)
    assert any(gate(thresholds[m] + 0.01, spread[m], opens, 0.5) > 0 for m in spread)


class StubbornSession(ToySession):
    """Refuses once it is pushed far enough, nothing else."""

    def steered_each(self, pushes: Sequence[Push]) -> Iterator[Rows]:
        for _, additions in pushes:
            yield self.logits((np.linalg.norm(additions, axis=-1) > 3.3).tolist())


class StubbornToy(Toy):
    def sessions(
        self, prompts: Sequence[Prompt], *, again: Collection[int] = ()
    ) -> Iterator[tuple[list[int], ToySession]]:
        yield list(range(len(prompts))), StubbornSession(self, prompts)


def test_the_trust_limit_is_the_least_that_makes_the_model_refuse() -> None:
    """The centroids are 2 apart: a push of more than 3.3 takes a limit above 1.65."""
    answered = Answered([Prompt(f"harmless {i}") for i in range(9)], np.zeros((9, 6)))
    toy = StubbornToy({"harmful": 2, "harmless": 2})
    assert trust_limit(toy, {"text": answered}, BASE, SORRY, 2, False) == 1.75


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({}, ""),
        ({"separation": 0.8}, "overlap at the best block (AUROC 0.80)"),
        ({"effect": 0.4}, "turned only 40% of harmless prompts into"),
        ({"effect": 0.0}, "block 0 is chosen by separation"),
        ({"opens": 11.0}, "closed for half of the held-out harmful text"),
        ({"contrast": 0.1}, "(contrast 0.10 of 1): it seldom refuses"),
    ],
)
def test_a_good_block_has_no_warnings_and_each_fault_has_its_own(
    changed: dict[str, float], warning: str
) -> None:
    of = {"separation": 0.99, "effect": 0.9, "opens": 3.0, "contrast": 0.9} | changed
    thresholds = {"text": np.array([0.2])}
    scores = LayerScores(np.array([of["separation"]]), thresholds, np.array([of["effect"]]))
    zero, one = np.zeros(4), np.ones(4)
    geometry = Geometry(zero, one, one, {"text": zero}, {"text": 0.1}, of["opens"], 0.5, 2.0)
    refusal = RefusalScore(SORRY.weights, 0.0, of["contrast"])
    found = warnings(refusal, scores, 0, np.array([0.9, 1.0, 1.1]), geometry)
    assert warning in "\n".join(found)
    assert bool(found) == bool(warning)
