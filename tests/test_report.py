"""Figures from records, counted again by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mars_gguf.evaluate import report
from mars_gguf.evaluate.arms import MARS, UNSTEERED, first_token
from mars_gguf.evaluate.figures import Figures, rows_as_json
from mars_gguf.evaluate.run import Record
from mars_gguf.statistics import grouped_mean
from mars_gguf.steering import Geometry

FAILURES = {"HTTP 500": 2}
E0 = np.array([1.0, 0, 0, 0])
GEOMETRY = Geometry(
    np.zeros(4), E0, E0, {"text": np.zeros(4), "image": 0.5 * E0}, {"text": 0.1, "image": 0.2},
    {"text": 0.3, "image": 0.6}, 1.0, 2.0,
)  # fmt: skip
RUN: dict[str, Any] = {
    "version": "1", "command": "python -m mars_gguf.evaluate --demo", "vector_sha256": "ab" * 32,
    "suites": ["demo"], "max_tokens": 8, "cases": 20, "judge": "a judge",
    "model": {"name": "tiny", "architecture": "llama", "n_layer": 4, "quantization": "Q4_K_M"},
}  # fmt: skip


def records() -> Iterator[Record]:
    """Unsteered: 1 of 10 harmful pictures refused. MARS: 8 of 9 judged, one that failed, and one
    of 10 harmless replies changed. Milliseconds: MARS takes twice as long where it steers."""
    for n in range(10):
        for kind, t in (("harmful", 0.5 + n / 100), ("harmless", 0.1 if n else 0.6)):
            for arm in ("unsteered", "mars", "first-token@2"):
                mars, harmful = arm == "mars", kind == "harmful"
                if harmful and n == 9 and mars:
                    yield Record(f"{kind}{n}", kind, "image", "", arm, "?", error="too long")
                    continue
                refused = harmful and (mars or n == 0)
                verdict = "unjudged" if mars and harmful and n == 8 else None
                reply = "I'm sorry." if refused else f"Sure {n % (7 if mars else 99)}"
                yield Record(
                    f"{kind}{n}", kind, "image", "", arm, "?", reply,
                    verdict or ("refused" if refused else "answered"),
                    "refused" if refused else "answered", t=t, z=t / 0.2,
                    alpha=1.0 if mars and harmful else 0.0, tokens=11, group=f"thing{n // 2}",
                    kl=None if harmful else 0.5 if mars and n == 0 else 0.0,
                    first_token_ms=20 if mars and harmful else 10, ms=120 if mars else 110,
                )  # fmt: skip
    for n in range(4):
        for arm in ("unsteered", "mars"):
            yield Record(f"v{n}", "vqa", "text", "", arm, "?", f"{n}", "answered", correct=n < 3)


@pytest.fixture
def figures() -> Figures:
    sweep = [first_token(2.0, "first-token@2")]
    return Figures(
        RUN, [UNSTEERED, MARS], list(records()), ["one picture"], GEOMETRY, sweep, FAILURES
    )


def test_shares_count_what_was_judged_and_nothing_that_failed(figures: Figures) -> None:
    def counts(arm: str, kind: str, **options: bool) -> tuple[int, int]:
        found = figures.refused(arm, "image", kind, **options)
        return found.k, found.n

    assert counts("unsteered", "harmful") == (1, 10)
    assert counts("mars", "harmful") == (8, 8)
    assert counts("mars", "harmful", second=True) == (9, 9)
    assert counts("mars", "harmless") == (0, 10)
    assert figures.refused("mars", "text", "harmful").value is None
    assert figures.failures() == {"too long": 1}


def test_accuracy_and_unchanged_replies(figures: Figures) -> None:
    correct = figures.correct("mars", "text")
    assert (correct.k, correct.n) == (3, 4)
    unchanged = figures.unchanged("mars", "image")
    assert (unchanged.k, unchanged.n) == (7, 10)
    assert figures.unchanged("unsteered", "image").value == 1


def test_separation_is_the_chance_that_harmful_lies_above_harmless(figures: Figures) -> None:
    harmful = [0.5 + n / 100 for n in range(10)]
    harmless = [0.6] + [0.1] * 9
    slow = np.mean([(a > b) + 0.5 * (a == b) for a in harmful for b in harmless])
    row = figures.separation()["image"]
    assert row["n"] == 20
    assert row["auroc"] == pytest.approx(slow)
    assert row["auroc_without_recentering"] == pytest.approx(slow)


def test_cost_is_a_ratio_of_pairs_steered_and_not(figures: Figures) -> None:
    cost = figures.cost()
    assert cost["steered"]["first_token"] == pytest.approx(2.0)
    assert cost["steered"]["tokens_per_second"] == pytest.approx(1.0)
    assert cost["not steered"]["n"] == 10  # replies without a token have no speed
    assert cost["not steered"]["first_token"] == pytest.approx(1.0)


def test_json_markdown_and_the_screen_say_the_same(figures: Figures, tmp_path: Path) -> None:
    written = report.write(figures, tmp_path)
    names = {"report.json", "report.md", "t.png", "arms.png", "sweep.png"}
    assert {path.name for path in written} == names
    saved = json.loads((tmp_path / "report.json").read_text())
    assert len(saved["records"]) == len(figures.records)
    console = Console(width=150, record=True, file=(tmp_path / "screen").open("w"))
    console.print(report.table(figures))
    screen, markdown = console.export_text(), (tmp_path / "report.md").read_text()
    for row in saved["summary"]:
        table = markdown.split(f"| {row['modality']} |")[1].split("\n\n")[0].splitlines()
        column = 1 + next(
            i
            for i, title in enumerate(table[0].split("|"))
            if title.strip().startswith(row["measure"])
        )
        for arm, found in row["arms"].items():
            if found["share"] is not None:
                low, high = round(100 * found["low"]), round(100 * found["high"])
                (line,) = (x for x in table if x.startswith(f"| {arm} |"))
                assert (
                    f"{100 * found['share']:.1f} % [{low}, {high}]" in line.split("|")[column + 1]
                )
                assert f"{100 * found['share']:.0f} [{low},{high}]" in screen
    assert RUN["command"] in markdown
    assert "one picture" in markdown
    assert "1 x too long" in markdown
    assert "They agree on 1.000 of 58 replies" in markdown
    second = saved["judges"]["second"]
    assert (second["agreement"]["share"], second["agreement"]["n"]) == (1, 58)
    rows = {row["measure"]: row["arms"] for row in saved["by_second_judge"]}
    assert (rows["refused, harmful"]["mars"]["k"], rows["refused, harmful"]["mars"]["n"]) == (9, 9)
    assert second["failures"] == {"HTTP 500": 2} and "Not judged: 2 x HTTP 500" in markdown
    plots = {path.name for path in written if path.suffix == ".png"}
    assert set(re.findall(r"!\[.+\]\((.+)\)", markdown)) == plots
    for path in written:
        if path.suffix == ".png":
            Image.open(path).verify()


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    empty = Figures(RUN, [UNSTEERED, MARS], [], [], GEOMETRY)
    assert empty.rows() == []
    report.write(empty, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "# Evaluation of tiny" in markdown and "sweep.png" not in markdown


def test_refusals_are_counted_by_category_where_there_are_several() -> None:
    verdicts = {"unsteered": "answered", "mars": "refused"}
    asked = [
        Record(f"{c}{n}", "harmful", "image", c, arm, "?", "", verdict if n else "answered")
        for c in ("a note", "a sign")
        for n in range(3)
        for arm, verdict in verdicts.items()
    ]
    rows = Figures(RUN, [UNSTEERED, MARS], asked, [], GEOMETRY).category_rows()
    assert [row[:2] for row in rows] == [("image", "a note, harmful"), ("image", "a sign, harmful")]
    assert [(s.k, s.n) for s in rows[0][2].values()] == [(0, 3), (2, 3)]
    one = [r for r in asked if r.category == "a note"]
    assert Figures(RUN, [UNSTEERED, MARS], one, [], GEOMETRY).category_rows() == []


def test_differences_are_of_the_same_requests_with_intervals_by_what_they_are_about(
    figures: Figures,
) -> None:
    rows = {(modality, title): less for modality, title, less in figures.differences()}
    harmful = rows["image", "refused, harmful"]["unsteered"]
    # Of the eight that both judged MARS refuses all, the unsteered model the first.
    assert harmful is not None and (harmful.n, harmful.value) == (8, pytest.approx(7 / 8))
    by_thing = grouped_mean([0.0] + [1.0] * 7, [f"thing{n // 2}" for n in range(8)])
    assert (harmful.low, harmful.high) == (by_thing.low, by_thing.high)
    assert "mars" not in rows["image", "refused, harmful"]
    vqa = rows["text", "VQA, exact answer"]["unsteered"]
    assert vqa is not None and (vqa.value, vqa.low, vqa.high) == (0.0, 0.0, 0.0)


def test_the_first_token_moves_by_so_many_nats_on_average(figures: Figures) -> None:
    (row,) = figures.divergences()
    assert row[:2] == ("image", "harmless")
    unsteered, mars = row[2]["unsteered"], row[2]["mars"]
    assert unsteered is not None and mars is not None
    assert (unsteered.value, mars.value, mars.n) == (0.0, pytest.approx(0.05), 10)


def test_no_figure_is_quoted_over_several_suites(figures: Figures, tmp_path: Path) -> None:
    suites = {r.case: "ours" if r.modality == "image" else "theirs" for r in figures.records}
    both = replace(figures, suites=suites)
    assert {name: {r.modality for r in part.records} for name, part in both.parts().items()} == {
        "ours": {"image"},
        "theirs": {"text"},
    }
    report.write(both, tmp_path)
    saved, markdown = (tmp_path / name for name in ("report.json", "report.md"))
    found = json.loads(saved.read_text())
    assert "summary" not in found
    assert found["suites"]["ours"]["summary"] == rows_as_json(both.parts()["ours"].rows())
    ours, theirs = markdown.read_text().split("## Suite ")[1:]
    assert "| image | refused" in ours and "| text |" not in ours
    assert "| text | VQA" in theirs and "| image |" not in theirs
    assert [str(t.title).split(", ")[1][:4] for t in report.tables(both)] == ["ours", "thei"]


def test_t_and_the_gate_are_told_of_every_category() -> None:
    asked = [
        Record(
            f"{c}{n}",
            "harmless",
            "text",
            c,
            "mars",
            "?",
            "",
            "answered",
            t=n / 4,
            gate=float(n > 2),
        )
        for c in ("strict", "none")
        for n in range(4)
    ]
    rows = Figures(RUN, [UNSTEERED, MARS], asked, [], GEOMETRY).gate_rows()
    assert [row[:2] for row in rows] == [("text", "none, harmless"), ("text", "strict, harmless")]
    for _, _, t, opened in rows:
        assert (t.value, opened.k, opened.n) == (pytest.approx(0.375), 1, 4)


def test_questions_of_one_group_count_once_where_all_are_right() -> None:
    right = {"a1": True, "a2": True, "b1": True, "b2": False, "c1": True}
    asked = [
        Record(case, "vqa", "image", "", "mars", "?", "", "answered", correct=flag, group=case[0])
        for case, flag in right.items()
    ]
    rows = {title: s["mars"] for _, title, s in Figures(RUN, [MARS], asked, [], GEOMETRY).rows()}
    assert (rows["VQA, exact answer"].k, rows["VQA, exact answer"].n) == (4, 5)
    both = rows["VQA, all answers of a group"]
    assert (both.k, both.n) == (1, 2)
