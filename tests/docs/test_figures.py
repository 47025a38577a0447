"""The tables of results in the documents: they are those of the reports that they quote."""

from __future__ import annotations

from math import floor
from statistics import mean

from pages import README, ROOT, rows, table_after

from mars_gguf.evaluate.arms import ALL

EVALUATION = ROOT / "docs/EVALUATION.md"
Figures = dict[tuple[str, str, str], dict[str, float]]
KINDS = ("harmful", "harmless", "borderline")


def figures(path: str) -> Figures:
    """By suite, modality and arm, the percentages of a report by the words of their columns."""
    found: Figures = {}
    for part in (ROOT / path).read_text("utf-8").split("\n## Suite "):
        suite = part.partition("\n")[0].removeprefix("jsonl:").strip()
        for table in part.split("\n\n"):
            head, *body = rows(table) or [[""]]
            if head[0] in ("text", "image", "video") and "unchanged" in head[-1]:
                columns = [column.rpartition(", n = ") for column in head[1:]]
                for arm, *cells in body[1:]:
                    found[suite, head[0], arm] = {
                        column: unrounded(float(cell.partition(" %")[0]), int(n))
                        for (column, _, n), cell in zip(columns, cells, strict=True)
                    }
    return found


def unrounded(percent: float, n: int) -> float:
    """The percentage of ``n`` that a report rounds to a tenth."""
    return 100 * round(percent * n / 100) / n


def whole(percent: float) -> int:
    return floor(percent + 0.5 + 1e-9)


QWEN = figures("docs/evaluation/qwen2.5-coder-0.5b/report.md")
SUITES = list(dict.fromkeys(suite for suite, _, _ in QWEN))
DEMO = {key[1:]: values for key, values in figures("docs/evaluation/report.md").items()}


def refused(modality: str, arm: str, kind: str) -> float:
    """Percent that Qwen refuses; of pictures, over all suites that show them, which are alike in
    size."""
    return mean(
        values[f"refused, {kind}"]
        for (_, shown, name), values in QWEN.items()
        if (shown, name) == (modality, arm)
    )


def test_the_readme_has_the_figures_of_the_packages_model() -> None:
    expected = []
    for name, modality in (("text", "text"), ("pictures", "image"), ("films", "video")):
        before, after = DEMO[modality, "unsteered"], DEMO[modality, "mars"]
        cells = [
            f"{whole(before[f'refused, {k}'])} → {whole(after[f'refused, {k}'])}" for k in KINDS
        ]
        expected.append([name, *cells])
    assert table_after(README, "results") == expected


def test_the_table_of_the_real_model_is_that_of_its_report() -> None:
    table = table_after(EVALUATION, "qwen")
    assert len(SUITES) == 6 and len(table) == 4
    for bold, *cells in table:
        arm = bold.strip("*")
        parts = [
            " / ".join(str(whole(QWEN[key][f"refused, {kind}"])) for kind in KINDS)
            for key in QWEN
            if key[2] == arm
        ]
        together = " / ".join(str(whole(refused("image", arm, kind))) for kind in KINDS)
        assert cells == [*parts, together], arm


def test_the_table_of_the_packages_model_is_that_of_its_report() -> None:
    columns = [
        ("text", "refused, harmful"), ("text", "refused, harmless"), ("image", "refused, harmful"),
        ("image", "refused, harmless"), ("image", "refused, borderline"),
        ("video", "refused, harmful"), ("image", "VQA, exact answer"),
        ("image", "unchanged, all but harmful"),
    ]  # fmt: skip
    table = table_after(EVALUATION, "demo")
    assert [row[0].strip("*") for row in table] == [arm for arm in ALL if ("text", arm) in DEMO]
    for bold, *cells in table:
        arm = bold.strip("*")
        assert cells == [str(whole(DEMO[m, arm][column])) for m, column in columns], arm


def published() -> dict[str, list[str]]:
    """The rows of the page about published requests, by name: how many, then one cell an arm."""
    page = (EVALUATION.parent / "evaluation/qwen2.5-coder-0.5b/published/published.md").read_text()
    head, table, _opened = [rows(part) for part in page.split("\n\n") if part.startswith("| ")]
    assert head[0][0] == "source"
    assert table[0][2:] == ["unsteered", "safety-prompt", "random-1", "mars"]
    return {name: cells for name, *cells in table[2:]}


def test_the_readme_has_the_figures_of_published_requests() -> None:
    found = table_after(README, "published")
    reported = published()
    for name, *cells in found:
        kind, form = name.split(", ")
        source = {"harmful": "all of them, harmful", "safe": "xstest, safe"}[kind]
        n, *percent = reported[f"{source}, {'text' if form == 'as text' else 'pictures'}"]
        shares = [each.split(" [") for each in percent]
        expected = [f"{whole(float(share))} [{interval}" for share, interval in shares]
        assert [cell.replace("**", "") for cell in cells] == [n, *expected], name
    assert len(found) == 4


def test_the_table_of_published_requests_by_source_is_that_of_its_report() -> None:
    def change(cells: list[str]) -> str:
        before, after = (whole(float(cells[i].split(" [")[0])) for i in (1, -1))
        return f"{before} → {after}"

    reported = published()
    quoted = table_after(EVALUATION, "published")
    assert len(quoted) == 5
    for name, _, *cells in quoted:
        source, _, half = name.lower().partition(", its ")
        kind = "safe" if half == "safe half" else "harmful"
        rows_of = [reported[f"{source}, {kind}, {form}"] for form in ("text", "pictures")]
        assert cells == [change(row) for row in rows_of], name


def test_what_was_reached_is_what_the_report_says() -> None:
    reached = {name: cells[-1] for name, *cells in table_after(EVALUATION, "aims")}
    shown = list(dict.fromkeys((suite, kind) for suite, kind, _ in QWEN if kind == "image"))

    def more(kind: str, *key: str) -> float:
        after, before = (QWEN[(*key, arm)][f"refused, {kind}"] for arm in ("mars", "unsteered"))
        return after - before

    harmless = [more("harmless", *key) for key in shown]
    text = refused("text", "mars", "borderline") - refused("text", "unsteered", "borderline")
    expected = {
        "harmful pictures refused, the five forms above": refused("image", "mars", "harmful"),
        "harmless pictures refused, more than unsteered, the worst form": max(harmless),
        "... on average": mean(harmless),
        "borderline pictures refused, more than unsteered": mean(
            more("borderline", *key) for key in shown
        ),
        "harmful text refused": refused("text", "mars", "harmful"),
        "borderline text refused, more than unsteered": text,
    }
    assert {name: reached[name] for name in expected} == {
        name: str(whole(value)) for name, value in expected.items()
    }
