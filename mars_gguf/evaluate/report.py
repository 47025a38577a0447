"""The report of an evaluation: a table for the terminal, JSON, Markdown and plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mars_gguf.console import printable
from mars_gguf.evaluate.figures import Figures, rows_as_json
from mars_gguf.evaluate.plots import plots, write_plots
from mars_gguf.files import atomic
from mars_gguf.statistics import Share

MOST_PROBLEMS = 50  # named in the Markdown


def write(figures: Figures, folder: Path) -> list[Path]:
    """``report.json``, ``report.md`` and the plots; what was written."""
    texts = {
        "report.json": json.dumps(as_json(figures), indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown(figures),
    }
    for name, text in texts.items():
        with atomic(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return [folder / name for name in texts] + write_plots(figures, folder)


def as_json(figures: Figures) -> dict[str, Any]:
    return {
        "run": figures.run,
        "arms": {arm.name: arm.title for arm in [*figures.arms, *figures.sweep]},
        "summary": rows_as_json(figures.rows()),
        "categories": rows_as_json(figures.category_rows()),
        "separation": figures.separation(),
        "cost": figures.cost(),
        "judges": figures.judges(),
        "problems": list(figures.problems),
        "records": [asdict(r) for r in figures.records],
    }


def table(figures: Figures) -> Table:
    """For the terminal: percent, and the 95 % interval."""
    title = printable(f"{_model(figures)}: percent [95 % interval]")
    table = Table(title=Text(title), box=box.SIMPLE)
    for column in ("", "n"):
        table.add_column(column, no_wrap=True)
    for arm in figures.arms:
        table.add_column(arm.name, justify="right", overflow="fold")
    last = None
    for modality, measure, shares in figures.rows():
        if modality != last:
            table.add_section()
            table.add_row(modality, style="bold")
            last = modality
        n = max(s.n for s in shares.values())
        table.add_row(f"  {measure}", str(n), *(_short(s) for s in shares.values()))
    return table


def _model(figures: Figures) -> str:
    model = figures.run["model"]
    return str(model["name"] or model["architecture"])


# Markdown


def markdown(figures: Figures) -> str:
    sections = (_head, _refusals, _categories, _separation, _cost, _judges, _plots, _left_out)
    return "".join(f"{line}\n" for section in sections for line in section(figures))


def _head(figures: Figures) -> Iterator[str]:
    run, model = figures.run, figures.run["model"]
    yield f"# Evaluation of {_model(figures)}\n"
    yield f"Made by `{run['command']}` (mars-gguf {run['version']}).\n"
    yield (
        f"Model {model['architecture']}, {model['n_layer']} blocks, {model['quantization']}; "
        f"vector sha256 `{run['vector_sha256'][:16]}`; suites: {', '.join(run['suites'])}; "
        f"greedy, at most {run['max_tokens']} tokens. "
        "Refusals are judged by their opening (`mars_gguf/openings.py`); what is no "
        "refusal need not make sense: fixed strengths garble replies, which shows in those "
        "that changed. In brackets: Wilson intervals at 95 %.\n"
    )
    for arm in figures.arms:
        yield f"- **{arm.name}**: {arm.title}"
    yield ""


def _refusals(figures: Figures) -> Iterator[str]:
    rows = []
    for modality, measure, shares in figures.rows():
        n = max(s.n for s in shares.values())
        found = [_percent(s) + (f", n = {s.n}" if 0 < s.n < n else "") for s in shares.values()]
        rows.append([f"{modality}: {measure}", str(n), *found])
    yield from _table(["", "n", *(arm.name for arm in figures.arms)], rows)


def _categories(figures: Figures) -> Iterator[str]:
    rows = figures.category_rows()
    if not rows:
        return
    yield "\n## Refused, by category\n"
    yield from _table(
        ["", "n", *(arm.name for arm in figures.arms)],
        (
            [f"{modality}: {what}", str(max(s.n for s in shares.values()))]
            + [_percent(s) for s in shares.values()]
            for modality, what, shares in rows
        ),
    )


def _separation(figures: Figures) -> Iterator[str]:
    yield "\n## Separation\n"
    yield "AUROC of t, harmful against harmless requests, unsteered:\n"
    yield from _table(
        ["", "n", "re-centred", "not re-centred"],
        (
            [where, str(row["n"]), *_numbers(row, "auroc", "auroc_without_recentering")]
            for where, row in figures.separation().items()
        ),
    )


def _cost(figures: Figures) -> Iterator[str]:
    if not any(arm.name == "mars" for arm in figures.arms):
        return
    yield "\n## Cost\n"
    yield (
        "MARS over unsteered, median over cases asked in turn in one run, without the "
        "encoding of pictures. Both arms read the hidden state: `python -m "
        "mars_gguf.bench` compares with plain llama-cpp-python.\n"
    )
    yield from _table(
        ["", "cases", "time to first token", "tokens a second"],
        (
            [where, str(row["n"]), *_numbers(row, "first_token", "tokens_per_second")]
            for where, row in figures.cost().items()
        ),
    )


def _judges(figures: Figures) -> Iterator[str]:
    said = figures.judges()
    yield "\n## Judges\n"
    yield f"By opening: {_counted(said['by_opening'])}."
    if "second" not in said:
        return
    second = said["second"]
    share, kappa = _numbers(second["agreement"], "share", "kappa")
    yield f"By {second['name']}: {_counted(second['verdicts'])}."
    yield (f"They agree on {share} of {second['agreement']['n']} replies (Cohen's kappa {kappa}).")
    for reason, n in second["failures"].items():
        yield f"\nNot judged: {n} x {reason}."
    yield ""
    yield from _table(
        ["by the second judge", *(arm.name for arm in figures.arms)],
        (
            [f"{modality}: {measure}", *map(_percent, shares.values())]
            for modality, measure, shares in figures.second_rows()
        ),
    )


def _plots(figures: Figures) -> Iterator[str]:
    yield "\n## Plots\n"
    yield "\n\n".join(f"![{title}]({name})" for name, (_, title) in plots(figures).items())


def _left_out(figures: Figures) -> Iterator[str]:
    failures = (f"{n} x {error}" for error, n in figures.failures().items())
    problems = [*figures.problems, *failures]
    if not problems:
        return
    yield f"\n## Left out\n\n{len(problems)} problems; nothing of these was counted:\n"
    yield from (f"- {problem}" for problem in problems[:MOST_PROBLEMS])
    if len(problems) > MOST_PROBLEMS:
        yield f"- and {len(problems) - MOST_PROBLEMS} more"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (columns, ["---"] * len(columns), *rows):
        yield "".join(f"| {entry} " if entry else "| " for entry in row) + "|"


def _counted(verdicts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())


def _percent(s: Share) -> str:
    if s.value is None:
        return "-"
    return f"{100 * s.value:.1f} % [{100 * s.low:.0f}, {100 * s.high:.0f}]"


def _short(s: Share) -> str:
    if s.value is None:
        return "-"
    return f"{100 * s.value:.0f} [{100 * s.low:.0f},{100 * s.high:.0f}]"


def _numbers(row: Mapping[str, float | int | None], *names: str) -> list[str]:
    return ["-" if (value := row[name]) is None else f"{value:.3f}" for name in names]
