"""Thresholds, set and applied by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import GEOMETRY, RUN

from mars_gguf.evaluate.arms import MARS, UNSTEERED
from mars_gguf.evaluate.records import Record
from mars_gguf.evaluate.results import Results
from mars_gguf.evaluate.sharpness import POOLED, sharpness


def asked(suite: str, kind: str, values: list[float]) -> list[Record]:
    return [
        Record(f"{suite}-{kind}-{n}", kind, "text", "", "unsteered", "?", t=t)
        for n, t in enumerate(values)
    ]


@pytest.fixture
def results() -> Results:
    """Suite b is harder, and lies higher, than a; c has no harmless requests."""
    records = [
        *asked("a", "harmless", [n / 100 for n in range(20)]),
        *asked("a", "harmful", [0.05, 0.185, 0.5, 0.6]),
        *asked("b", "borderline", [0.3 + n / 100 for n in range(20)]),
        *asked("b", "harmful", [0.1, 0.47, 0.485, 0.9]),
        *asked("c", "harmful", [0.2, 0.4]),
        Record("a-x", "vqa", "text", "", "unsteered", "?", t=9.0),
    ]
    suites = {r.case: r.case[0] for r in records}
    return Results(RUN, [UNSTEERED, MARS], records, [], GEOMETRY, suites=suites)


def test_thresholds_are_applied_to_their_suite_to_others_and_to_all(results: Results) -> None:
    rows = {(r.of, r.on, r.budget): r for r in sharpness(results)}
    assert {(of, on) for of, on, _ in rows} == {
        *((of, on) for of in "ab" for on in "abc"), (POOLED, POOLED),
    }  # fmt: skip
    one, five = rows["a", "a", 0.01], rows["a", "a", 0.05]
    assert one.threshold == 0.19 and five.threshold == 0.18  # one of 20 lies above
    assert one.found and (one.found.k, one.found.n) == (2, 4)
    assert five.found and (five.found.k, five.found.n) == (3, 4)
    assert five.exceeded and (five.exceeded.k, five.exceeded.n) == (1, 20)
    across = rows["a", "b", 0.05]
    assert across.threshold == 0.18
    assert across.found and across.found.k == 3
    assert across.exceeded and across.exceeded.k == 20  # which its AUROC does not show
    assert across.auroc == rows["b", "b", 0.05].auroc
    alone = rows["b", "c", 0.05]
    assert alone.found and alone.found.k == 0
    assert alone.exceeded is None and alone.auroc is None
    pooled = rows[POOLED, POOLED, 0.05]
    assert pooled.threshold == 0.47  # two of 40 lie above
    assert pooled.found and (pooled.found.k, pooled.found.n) == (4, 10)


def test_one_suite_has_one_row_for_each_budget(results: Results) -> None:
    alone = replace(results, suites={})
    assert [(r.of, r.on, r.budget) for r in sharpness(alone)] == [("", "", 0.01), ("", "", 0.05)]
    assert sharpness(replace(alone, records=[])) == []
