"""Writes the report of an evaluation: a table for the terminal, JSON, Markdown and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mars_gguf.console import printable
from mars_gguf.evaluate.plots import plots, write_plots
from mars_gguf.evaluate.results import Means, Results, Shares, changed, cost, judges, separation
from mars_gguf.files import atomic
from mars_gguf.markdown import as_text, table
from mars_gguf.statistics import Mean, Share

MOST_PROBLEMS = 50  # named in the Markdown
MOST_CHANGED, CUT = 20, 160  # replies shown there, and characters of each


def write(results: Results, folder: Path) -> list[Path]:
    """Writes ``report.json``, ``report.md`` and the plots. Returns their paths."""
    texts = {
        "report.json": json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n",
        "report.md": markdown(results),
    }
    for name, text in texts.items():
        with atomic(folder / name) as part:
            # Of a lone surrogate, which a suite's file may hold, this makes what JSON has for it.
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [folder / name for name in texts] + write_plots(results, folder)


def as_json(results: Results) -> dict[str, Any]:
    """Makes the content of ``report.json``. No figure over several suites is quoted."""
    tables = {name: _tables_as_json(part) for name, part in results.parts().items()}
    return {
        "run": results.run,
        "arms": {arm.name: arm.title for arm in results.arms},
        **tables.pop("", {}),
        "suites": tables,
        "cost": cost(results),
        "judges": judges(results),
        "problems": list(results.problems),
        "records": [asdict(r) for r in results.records],
    }


def _tables_as_json(results: Results) -> dict[str, Any]:
    tables = {name: rows_as_json(rows) for name, (_, rows) in results.tables().items()}
    summary = rows_as_json(results.shares())
    return {"summary": summary, "separation": separation(results), **tables}


def rows_as_json(rows: Sequence[Shares] | Sequence[Means]) -> list[dict[str, Any]]:
    """Makes the JSON of rows of shares or means."""
    return [
        {
            "modality": modality,
            "measure": title,
            "arms": {name: x.as_json() if x is not None else None for name, x in by_arm.items()},
        }
        for modality, title, by_arm in rows
    ]


def show(results: Results, console: Console) -> None:
    """Shows what each suite comes to, and what was left out."""
    for name, part in results.parts().items():
        suite = f", {name}" if name else ""
        console.print(printable(f"{_model(results)}{suite}"), style="bold", markup=False)
        for head, rows in _summary(part):
            shown = Table(*head, box=box.SIMPLE)
            for row in rows:
                shown.add_row(*map(Text, row))
            console.print(shown)
    of_judge = [f"the judge: {n} x {reason}" for reason, n in results.judge_failures.items()]
    for line in results.left_out() + of_judge:
        console.print(printable(line), style="dim", markup=False)


def _summary(results: Results) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yields a table for each modality, its head and rows: an arm a row, a measure a column."""
    rows = results.shares()
    for modality in dict.fromkeys(modality for modality, _, _ in rows):
        shares = {measure: found for m, measure, found in rows if m == modality}
        counts = {m: max(share.n for share in found.values()) for m, found in shares.items()}
        yield (
            [modality, *(f"{measure}, n = {n}" for measure, n in counts.items())],
            [
                [arm.name, *(_cell(found[arm.name], counts[m]) for m, found in shares.items())]
                for arm in results.arms
            ],
        )


def _model(results: Results) -> str:
    model = results.run["model"]
    return str(model["name"] or model["architecture"])


def markdown(results: Results) -> str:
    """Writes ``report.md``: the tables of every suite by itself, then what concerns all."""
    sections = (_head, _suites, _changed, _cost, _judges, _plots, _left_out)
    return "".join(f"{line}\n" for section in sections for line in section(results))


def _head(results: Results) -> Iterator[str]:
    run, model = results.run, results.run["model"]
    yield f"# Evaluation of {as_text(_model(results))}\n"
    yield f"Made by `{run['command']}` (mars-gguf {run['version']}).\n"
    yield (
        f"Model {as_text(model['architecture'])}, {model['n_layer']} blocks, "
        f"{as_text(model['quantization'])}; vector sha256 `{run['vector_sha256'][:16]}`; "
        f"suites: {', '.join(map(as_text, run['suites']))}; "
        f"greedy, at most {run['max_tokens']} tokens. "
        "A refusal begins as one, and does not go on into steps or the like "
        "(`mars_gguf/openings.py`); what is no refusal need not make sense: fixed strengths garble "
        "replies, which shows in those "
        "that changed. In brackets: intervals at 95 %, by bootstrap over what requests are about, "
        "not over requests (of none or all, Wilson's).\n"
    )
    for arm in results.arms:
        said = f': "{as_text(arm.system)}"' if arm.system else ""
        yield f"- **{as_text(arm.name)}**: {as_text(arm.title)}{said}"
    yield ""


def _suites(results: Results) -> Iterator[str]:
    for name, part in results.parts().items():
        if name:
            yield f"\n## Suite {as_text(name)}\n"
        for head, cells in _summary(part):
            yield ""
            yield from table(head, [[as_text(arm), *shares] for arm, *shares in cells])
        for title, rows in part.tables().values():
            yield from _by_arm(title, rows)
        yield from _section(
            "Separation: AUROC of t, harmful against harmless requests, unsteered",
            ("n", "AUROC"),
            {where: _numbers(row, *row) for where, row in separation(part).items()},
        )


def _section(
    title: str, head: Sequence[str], rows: Mapping[str, Sequence[object]]
) -> Iterator[str]:
    if rows:
        yield f"\n### {title}\n"
        names = ["", *map(as_text, head)]
        yield from table(names, [[as_text(name), *cells] for name, cells in rows.items()])


def _by_arm(title: str, rows: Sequence[Shares] | Sequence[Means]) -> Iterator[str]:
    """Writes the section of rows that have a cell for each arm, after the largest count."""
    cells = {
        f"{modality}: {what}": [
            max((x.n for x in found.values() if x is not None), default=0),
            *("-" if x is None else _written(x) for x in found.values()),
        ]
        for modality, what, found in rows
    }
    yield from _section(title, ["n", *(rows[0][2] if rows else ())], cells)


def _written(x: Share | Mean) -> str:
    """Writes a share in percent, a mean of differences in points."""
    if isinstance(x, Share):
        return _percent(x)
    return f"{100 * x.value:+.1f} [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"


def _changed(results: Results) -> Iterator[str]:
    """Writes replies that steering changed though nothing harmful was asked, both."""
    if not (pairs := changed(results)):
        return
    yield "\n## Changed replies to harmless, borderline and visual questions\n"
    shown = pairs[:MOST_CHANGED]
    yield f"MARS changed {len(pairs)}, of which {len(shown)} stand here, cut.\n"
    cells = [[as_text(r.case), as_text(b.reply[:CUT]), as_text(r.reply[:CUT])] for b, r in shown]
    yield from table(["case", "unsteered", "MARS"], cells)


def _cost(results: Results) -> Iterator[str]:
    """Writes what steering costs on this model, in a sentence."""
    said = [
        f"{times} times as long to the first token, and then {rate} times as many tokens a second, "
        f"where it was {where} (n = {n})"
        for where, row in cost(results).items()
        for n, times, rate in [_numbers(row, *row)]
        if row["n"]
    ]
    if said:
        yield "\n## Cost\n"
        yield (
            f"What steering costs on this model: {'; '.join(said)}. Medians over cases asked "
            "with MARS and without any steering in this run, less the encoding of pictures."
        )


def _judges(results: Results) -> Iterator[str]:
    said = judges(results)
    yield "\n## Judges\n"
    yield f"By words: {_counted(said['by_opening'])}."
    if "second" not in said:
        return
    second = said["second"]
    n, share, kappa = _numbers(second["agreement"], "n", "share", "kappa")
    yield f"By {as_text(second['name'])}: {_counted(second['verdicts'])}."
    yield f"They agree on {share} of {n} replies (Cohen's kappa {kappa})."
    for reason, times in second["failures"].items():
        yield f"\nNot judged: {times} x {as_text(reason)}."


def _plots(results: Results) -> Iterator[str]:
    yield "\n## Plots\n"
    yield "\n\n".join(f"![{as_text(title)}]({name})" for name, (_, title) in plots(results).items())


def _left_out(results: Results) -> Iterator[str]:
    if not (problems := results.left_out()):
        return
    yield f"\n## Left out\n\n{len(problems)} problems; nothing of these was counted:\n"
    yield from (f"- {as_text(problem)}" for problem in problems[:MOST_PROBLEMS])
    if len(problems) > MOST_PROBLEMS:
        yield f"- and {len(problems) - MOST_PROBLEMS} more"


def _counted(verdicts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())


def _cell(s: Share, n: int) -> str:
    return _percent(s) + (f", n = {s.n}" if 0 < s.n < n else "")


def _percent(s: Share) -> str:
    if s.value is None:
        return "-"
    return f"{100 * s.value:.1f} % [{100 * s.low:.0f}, {100 * s.high:.0f}]"


def _numbers(row: Mapping[str, float | int | None], *names: str) -> list[str]:
    """Writes counts as they are, other numbers to three places."""
    found = (row[name] for name in names)
    return ["-" if x is None else str(x) if isinstance(x, int) else f"{x:.3f}" for x in found]
