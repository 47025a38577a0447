from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from recorded import GEOMETRY, RUN, recorded
from rich.console import Console

from mars_gguf.evaluate import report
from mars_gguf.evaluate.arms import MARS, UNSTEERED
from mars_gguf.evaluate.plots import plots
from mars_gguf.evaluate.report import rows_as_json
from mars_gguf.evaluate.results import Results


@pytest.fixture
def results() -> Results:
    return recorded()


def test_json_markdown_and_the_screen_say_the_same(results: Results, tmp_path: Path) -> None:
    written = report.write(results, tmp_path)
    names = {"report.json", "report.md", "t.png", "arms.png"}
    assert {path.name for path in written} == names
    saved = json.loads((tmp_path / "report.json").read_text())
    assert len(saved["records"]) == len(results.records)
    console = Console(width=150, record=True, file=(tmp_path / "screen").open("w"))
    report.show(results, console)
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
                cell = f"{100 * found['share']:.1f} % [{low}, {high}]"
                assert cell in line.split("|")[column + 1] and cell in screen
    assert RUN["command"] in markdown
    assert "one picture" in markdown
    assert "1 x too long" in markdown
    assert "They agree on 1.000 of 38 replies" in markdown
    second = saved["judges"]["second"]
    assert (second["agreement"]["share"], second["agreement"]["n"]) == (1, 38)
    rows = {row["measure"]: row["arms"] for row in saved["by_second_judge"]}
    assert (rows["refused, harmful"]["mars"]["k"], rows["refused, harmful"]["mars"]["n"]) == (9, 9)
    assert second["failures"] == {"HTTP 500": 2} and "Not judged: 2 x HTTP 500" in markdown
    plots = {path.name for path in written if path.suffix == ".png"}
    assert set(re.findall(r"!\[.+\]\((.+)\)", markdown)) == plots
    for path in written:
        if path.suffix == ".png":
            Image.open(path).verify()


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    empty = Results(RUN, [UNSTEERED, MARS], [], [], GEOMETRY)
    assert empty.shares() == []
    report.write(empty, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "# Evaluation of tiny" in markdown


def test_a_run_that_was_broken_off_before_arms_share_a_case_has_a_report(
    results: Results,
) -> None:
    """No difference can be told then."""
    few = [r for r in results.records if r.arm == "unsteered"]
    assert "| image: refused, harmful | 0 | - |" in report.markdown(replace(results, records=few))


def test_a_lone_surrogate_of_a_suites_file_ends_no_report(results: Results, tmp_path: Path) -> None:
    run = RUN | {"suites": ["jsonl:\udcff.jsonl"], "command": "evaluate --suite \udcff.jsonl"}
    records = [replace(r, category="\ud800") for r in results.records]
    report.write(replace(results, run=run, records=records), tmp_path)
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert saved["run"] == run and {r["category"] for r in saved["records"]} == {"\ud800"}
    assert "--suite \\udcff.jsonl" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_no_figure_is_quoted_over_several_suites(results: Results, tmp_path: Path) -> None:
    suites = {r.case: "ours" if r.modality == "image" else "theirs" for r in results.records}
    both = replace(results, suites=suites)
    assert {name: {r.modality for r in part.records} for name, part in both.parts().items()} == {
        "ours": {"image"},
        "theirs": {"text"},
    }
    report.write(both, tmp_path)
    saved, markdown = (tmp_path / name for name in ("report.json", "report.md"))
    found = json.loads(saved.read_text())
    assert "summary" not in found
    assert found["suites"]["ours"]["summary"] == rows_as_json(both.parts()["ours"].shares())
    *_, ours, theirs = markdown.read_text().split("## Suite ")
    theirs = theirs.partition("\n## ")[0]
    assert "| image | refused" in ours and "| text |" not in ours
    assert "| text | VQA" in theirs and "| image |" not in theirs
    console = Console(width=150, record=True, file=(tmp_path / "screen").open("w"))
    report.show(both, console)
    shown = console.export_text()
    assert "tiny, ours" in shown and "tiny, theirs" in shown


HOSTILE = (
    "<img src=x onerror=alert(1)> ![](https://example.org/a.png)\n\n# Heading | \x1b[2J **bold**"
)


def test_nothing_that_a_suite_or_a_model_says_is_more_than_text(results: Results) -> None:
    said = [replace(r, category=f"{HOSTILE} {r.case[-1]}") for r in results.records]
    failing = [replace(r, error=HOSTILE) for r in said[:1]]
    model = dict.fromkeys(("name", "architecture", "quantization"), HOSTILE)
    hostile = replace(
        results,
        run=RUN | {"model": RUN["model"] | model, "suites": [HOSTILE, "b"], "judge": HOSTILE},
        arms=[replace(arm, title=HOSTILE, system=HOSTILE) for arm in results.arms],
        records=[*failing, *said[1:]],
        problems=[HOSTILE],
        judge_failures={HOSTILE: 1},
        suites={r.case: HOSTILE if r.modality == "image" else "b" for r in results.records},
    )
    page = report.markdown(hostile)
    assert page.count("alert") > 20
    assert "\x1b" not in page
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    parts = [part for token in tokens for part in token.children or []]
    assert not {"html_block", "html_inline", "link_open"} & {x.type for x in [*tokens, *parts]}
    shown = {part.attrs["src"] for part in parts if part.type == "image"}
    assert shown == set(plots(hostile))
    headings = {
        token.content
        for before, token in itertools.pairwise(tokens)
        if before.type == "heading_open"
    }
    assert not any(heading.startswith("Heading") for heading in headings)
    assert {"Cost", "Judges", "Plots", "Left out", "Refused, by category"} <= headings
