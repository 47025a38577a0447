"""The report of an evaluation: a table for the terminal, JSON, Markdown and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mars_gguf.console import printable
from mars_gguf.evaluate.figures import (
    Difference,
    Figures,
    judges,
    means_as_json,
    rows_as_json,
)
from mars_gguf.evaluate.plots import plots, write_plots
from mars_gguf.files import atomic
from mars_gguf.statistics import Mean, Share

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
        **_tables_as_json(figures),
        "suites": {name: _tables_as_json(part) for name, part in figures.parts().items()},
        "cost": figures.cost(),
        "judges": judges(figures),
        "problems": list(figures.problems),
        "records": [asdict(r) for r in figures.records],
    }


def _tables_as_json(figures: Figures) -> dict[str, Any]:
    if figures.parts():  # no figure over several suites is quoted
        return {}
    return {
        "summary": rows_as_json(figures.rows()),
        "by_second_judge": rows_as_json(figures.second_rows()),
        "separation": figures.separation(),
        "differences": means_as_json(figures.differences()),
        "divergences": means_as_json(figures.divergences()),
        "categories": rows_as_json(figures.category_rows()),
        "gates": [
            {"modality": m, "measure": what, "t": t.as_json(), "opened": opened.as_json()}
            for m, what, t, opened in figures.gate_rows()
        ],
    }


def tables(figures: Figures) -> list[Table]:
    """For the terminal: a table for each suite."""
    parts = figures.parts() or {"": figures}
    return [table(part, name) for name, part in parts.items()]


def table(figures: Figures, suite: str = "") -> Table:
    """For the terminal: percent, and the 95 % interval; an arm a line, modality by modality."""
    named = f"{_model(figures)}, {suite}" if suite else _model(figures)
    title = printable(f"{named}: percent [95 % interval]")
    table = Table(title=Text(title), box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    rows = figures.rows()
    measures = list(dict.fromkeys(measure for _, measure, _ in rows))
    for measure in measures:
        table.add_column(measure, justify="right")
    for modality in dict.fromkeys(modality for modality, _, _ in rows):
        found = {measure: shares for m, measure, shares in rows if m == modality}
        counts = {measure: max(s.n for s in shares.values()) for measure, shares in found.items()}
        table.add_section()
        table.add_row(modality, *(f"n = {counts.get(m, 0)}" for m in measures), style="bold")
        for arm in figures.arms:
            cells = (_short(found[m][arm.name]) if m in found else "-" for m in measures)
            table.add_row(f"  {arm.name}", *cells)
    return table


def _model(figures: Figures) -> str:
    model = figures.run["model"]
    return str(model["name"] or model["architecture"])


# Markdown


def markdown(figures: Figures) -> str:
    sections = (_head, _suites, _cost, _judges, _plots, _left_out)
    return "".join(f"{line}\n" for section in sections for line in section(figures))


def _suites(figures: Figures) -> Iterator[str]:
    """The tables of refusals, of every suite by itself."""
    for name, part in (figures.parts() or {"": figures}).items():
        if name:
            yield f"\n## Suite {name}\n"
        for section in SECTIONS:
            yield from section(part)


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
        "that changed. In brackets: intervals at 95 %, by bootstrap over what requests are about, "
        "not over requests (of none or all, Wilson's).\n"
    )
    for arm in figures.arms:
        said = f': "{arm.system}"' if arm.system else ""
        yield f"- **{arm.name}**: {arm.title}{said}"
    yield ""


def _refusals(figures: Figures) -> Iterator[str]:
    rows = figures.rows()
    for modality in dict.fromkeys(modality for modality, _, _ in rows):
        found = {measure: shares for m, measure, shares in rows if m == modality}
        counts = [max(s.n for s in shares.values()) for shares in found.values()]
        titles = (f"{measure}, n = {n}" for measure, n in zip(found, counts, strict=True))
        yield ""
        yield from _table(
            [modality, *titles],
            (
                [arm.name, *map(_cell, [shares[arm.name] for shares in found.values()], counts)]
                for arm in figures.arms
            ),
        )


def _cell(s: Share, n: int) -> str:
    return _percent(s) + (f", n = {s.n}" if 0 < s.n < n else "")


def _differences(figures: Figures) -> Iterator[str]:
    yield from _means(
        figures.differences(),
        "MARS less each other arm, in points, on the same requests",
        lambda mean: f"{100 * mean.value:+.1f} [{100 * mean.low:+.0f}, {100 * mean.high:+.0f}]",
    )


def _divergences(figures: Figures) -> Iterator[str]:
    yield from _means(
        figures.divergences(),
        "How far the first token's distribution moves, mean KL(unsteered || arm) in nats",
        lambda mean: f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
    )


def _means(rows: Sequence[Difference], title: str, written: Callable[[Mean], str]) -> Iterator[str]:
    if not rows:
        return
    yield f"\n### {title}\n"
    yield from _table(
        ["", *rows[0][2]],
        (
            [f"{modality}: {what}", *("-" if m is None else written(m) for m in means.values())]
            for modality, what, means in rows
        ),
    )


def _gates(figures: Figures) -> Iterator[str]:
    rows = figures.gate_rows()
    if not rows:
        return
    yield "\n### t and the gate of MARS, by category\n"
    yield from _table(
        ["", "n", "mean t", "opened"],
        (
            [f"{modality}: {what}", str(t.n), _mean(t), _percent(opened)]
            for modality, what, t, opened in rows
        ),
    )


def _mean(mean: Mean) -> str:
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


def _categories(figures: Figures) -> Iterator[str]:
    rows = figures.category_rows()
    if not rows:
        return
    yield "\n### Refused, by category\n"
    yield from _table(
        ["", "n", *(arm.name for arm in figures.arms)],
        (
            [f"{modality}: {what}", str(max(s.n for s in shares.values()))]
            + [_percent(s) for s in shares.values()]
            for modality, what, shares in rows
        ),
    )


def _separation(figures: Figures) -> Iterator[str]:
    if not figures.separation():
        return
    yield "\n### Separation: AUROC of t, harmful against harmless requests, unsteered\n"
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
    said = judges(figures)
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


def _by_second_judge(figures: Figures) -> Iterator[str]:
    rows = figures.second_rows()
    if not rows:
        return
    yield "\n### By the second judge\n"
    yield from _table(
        ["", *(arm.name for arm in figures.arms)],
        (
            [f"{modality}: {measure}", *map(_percent, shares.values())]
            for modality, measure, shares in rows
        ),
    )


SECTIONS = (
    _refusals, _differences, _divergences, _categories, _gates, _separation, _by_second_judge,
)  # fmt: skip


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
