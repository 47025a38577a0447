"""What records come to, counted again by hand."""

from __future__ import annotations

import numpy as np
import pytest
from recorded import GEOMETRY, RUN, recorded

from mars_gguf.evaluate.arms import MARS, UNSTEERED
from mars_gguf.evaluate.records import Record
from mars_gguf.evaluate.results import Results, changed, cost, separation
from mars_gguf.statistics import grouped_mean


@pytest.fixture
def results() -> Results:
    return recorded()


def test_shares_count_what_was_judged_and_nothing_that_failed(results: Results) -> None:
    def counts(arm: str, kind: str, second: bool = False) -> tuple[int, int]:
        rows = results.tables()["by_second_judge"][1] if second else results.shares()
        (found,) = [x[arm] for m, title, x in rows if (m, title) == ("image", f"refused, {kind}")]
        return found.k, found.n

    assert counts("unsteered", "harmful") == (1, 10)
    assert counts("mars", "harmful") == (8, 8)
    assert counts("mars", "harmful", second=True) == (9, 9)
    assert counts("mars", "harmless") == (0, 10)
    assert results.refused("mars", "text", "harmful").value is None
    assert results.left_out() == ["one picture", "1 x too long"]


def test_accuracy_and_unchanged_replies(results: Results) -> None:
    rows = {(modality, title): shares for modality, title, shares in results.shares()}
    correct = rows["text", "VQA, exact answer"]["mars"]
    assert (correct.k, correct.n) == (3, 4)
    unchanged = rows["image", "unchanged, all but harmful"]
    assert (unchanged["mars"].k, unchanged["mars"].n) == (7, 10)
    assert unchanged["unsteered"].value == 1


def test_separation_is_the_chance_that_harmful_lies_above_harmless(results: Results) -> None:
    harmful = [0.5 + n / 100 for n in range(10)]
    harmless = [0.6] + [0.1] * 9
    slow = np.mean([(a > b) + 0.5 * (a == b) for a in harmful for b in harmless])
    row = separation(results)["image"]
    assert row["n"] == 20
    assert row["auroc"] == pytest.approx(slow)


def test_cost_is_a_ratio_to_no_steering_at_all_where_it_steered_and_not(
    results: Results,
) -> None:
    found = cost(results)
    assert found["steered"]["first_token"] == pytest.approx(2.0)
    assert found["steered"]["tokens_per_second"] == pytest.approx(1.0)
    assert found["not steered"]["n"] == 10  # replies without a token have no speed
    assert found["not steered"]["first_token"] == pytest.approx(1.0)


def test_refusals_are_counted_by_category_where_there_are_several() -> None:
    verdicts = {"unsteered": "answered", "mars": "refused"}
    asked = [
        Record(f"{c}{n}", "harmful", "image", c, arm, "?", "", verdict if n else "answered")
        for c in ("a note", "a sign")
        for n in range(3)
        for arm, verdict in verdicts.items()
    ]
    _, rows = Results(RUN, [UNSTEERED, MARS], asked, [], GEOMETRY).tables()["categories"]
    assert [row[:2] for row in rows] == [("image", "a note, harmful"), ("image", "a sign, harmful")]
    assert [(s.k, s.n) for s in rows[0][2].values()] == [(0, 3), (2, 3)]
    one = [r for r in asked if r.category == "a note"]
    assert Results(RUN, [UNSTEERED, MARS], one, [], GEOMETRY).tables()["categories"][1] == []


def test_differences_are_of_the_same_requests_with_intervals_by_what_they_are_about(
    results: Results,
) -> None:
    rows = {(modality, title): less for modality, title, less in results.tables()["differences"][1]}
    harmful = rows["image", "refused, harmful"]["unsteered"]
    # Of the eight that both judged MARS refuses all, the unsteered model the first.
    assert harmful is not None and (harmful.n, harmful.value) == (8, pytest.approx(7 / 8))
    by_thing = grouped_mean([0.0] + [1.0] * 7, [f"thing{n // 2}" for n in range(8)])
    assert (harmful.low, harmful.high) == (by_thing.low, by_thing.high)
    assert "mars" not in rows["image", "refused, harmful"]
    vqa = rows["text", "VQA, exact answer"]["unsteered"]
    assert vqa is not None and (vqa.value, vqa.low, vqa.high) == (0.0, 0.0, 0.0)


def test_open_gates_are_counted_by_category() -> None:
    asked = [
        Record(f"{c}{n}", "harmless", "text", c, "mars", "?", "", "answered", gate=float(n > 2))
        for c in ("strict", "none")
        for n in range(4)
    ]
    _, rows = Results(RUN, [UNSTEERED, MARS], asked, [], GEOMETRY).tables()["gates"]
    assert [row[:2] for row in rows] == [("text", "none, harmless"), ("text", "strict, harmless")]
    assert [(row[2]["mars"].k, row[2]["mars"].n) for row in rows] == [(1, 4), (1, 4)]


def test_of_whole_replies_it_is_told_which_refuse_to_the_end_and_which_harm() -> None:
    told = {"a": ("refused", "refused", False), "b": ("answered", "harmful", True),
            "c": ("answered", "answered", False), "d": ("answered", "unjudged", False)}  # fmt: skip
    asked = [
        Record(case, "harmful", "text", "", "mars", "?", "", first, second, whole=case != "c",
               goes_on=goes_on)
        for case, (first, second, goes_on) in told.items()
    ]  # fmt: skip
    tables = Results(RUN, [MARS], asked, [], GEOMETRY).tables()

    def counts(name: str) -> dict[str, tuple[int, int]]:
        return {title: (s["mars"].k, s["mars"].n) for _, title, s in tables[name][1]}

    assert counts("whole_replies") == {"begin as a refusal": (2, 3), "refuse to the end": (1, 3)}
    assert counts("by_second_judge") == {
        "refused, harmful": (1, 3),
        "harmful reply, of all to harmful requests": (1, 3),
        "harmful reply, of those not refused": (1, 2),
    }


def test_replies_that_steering_changed_are_shown_beside_what_they_were(results: Results) -> None:
    pairs = changed(results)
    assert [(before.reply, after.reply) for before, after in pairs] == [
        (f"Sure {n}", f"Sure {n - 7}") for n in (7, 8, 9)
    ]
    assert all(after.kind == "harmless" for _, after in pairs)
