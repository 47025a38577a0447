"""Plots of an evaluation, one of each sort for each suite."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import recorded

from mars_gguf.evaluate.plots import plots


def test_each_of_several_suites_has_plots_of_its_own() -> None:
    results = recorded()
    assert set(plots(results)) == {"t.png", "arms.png"}
    suites = {
        r.case: "demo" if r.modality == "image" else "jsonl:a b.jsonl" for r in results.records
    }
    drawn = plots(replace(results, suites=suites))
    assert set(drawn) == {
        "t-demo.png", "arms-demo.png", "t-jsonl-a-b-jsonl.png", "arms-jsonl-a-b-jsonl.png",
    }  # fmt: skip
    assert drawn["t-demo.png"][1] == "t by modality and kind of request, demo"


def test_t_is_drawn_with_where_the_gate_opens_for_films_as_for_pictures() -> None:
    results = recorded()
    films = [replace(r, modality="video") for r in results.records if r.modality == "image"]
    picture = plots(replace(results, records=[*results.records, *films]))["t.png"][0]()
    opens = {axis.get_title().split()[0]: axis.lines[-1].get_ydata()[0] for axis in picture.axes}
    assert opens == results.geometry.thresholds | {"video": results.geometry.thresholds["image"]}


def test_arms_are_drawn_where_their_shares_of_refusals_lie() -> None:
    picture = plots(recorded())["arms.png"][0]()
    (axis,) = picture.axes
    points = {bars.get_label(): tuple(bars.lines[0].get_xydata()[0]) for bars in axis.containers}
    assert points == {"unsteered": pytest.approx((0, 10)), "mars": pytest.approx((0, 100))}
