"""Writes what trials come to: a table in Markdown, a row for each attack and kind of request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lab.attacks.trials import Trial
from mars_gguf import markdown
from mars_gguf.modalities import MODALITIES
from mars_gguf.statistics import wilson

COLUMNS = (
    "refused, unsteered",
    "refused, steered",
    "gates open",
    "mean t",
    "goes on behind it, steered",
    "names it, unsteered",
    "names it, steered",
)


def table(trials: Sequence[Trial]) -> str:
    """Writes the table; its last two columns are left out where no thing has a name."""
    named = any(trial.steered.names is not None for trial in trials)
    columns = COLUMNS if named else COLUMNS[:-2]
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.kind, MODALITIES.index(trial.modality))):
        groups.setdefault((trial.kind, trial.modality, trial.attack), []).append(trial)
    rows = []
    for (kind, modality, attack), group in groups.items():
        n = f"{len(group)} ({len({trial.topic for trial in group})})"
        rows.append((f"{kind}, {modality}", attack, n, *_cells(group)[: len(columns)]))
    lines = markdown.table(("requests", "attack", "n (things)", *columns), rows)
    return "".join(f"{line}\n" for line in lines)


def _cells(group: Sequence[Trial]) -> list[str]:
    topics = [trial.topic for trial in group]
    outcomes = [[t.unsteered for t in group], [t.steered for t in group]]
    shares = [share_of([outcome.refused for outcome in each], topics) for each in outcomes]
    return [
        *shares,
        f"{100 * np.mean([trial.open for trial in group]):.0f} %",
        f"{_mean(trial.t for trial in group):.2f}",
        _counted([trial.goes_on for trial in group if trial.goes_on is not None]),
        *(f"{100 * np.mean([bool(o.names) for o in each]):.0f} %" for each in outcomes),
    ]


def _counted(flags: Sequence[bool]) -> str:
    return f"{sum(flags)} of {len(flags)}" if flags else "-"


def _mean(values: Iterable[float]) -> float:
    """Computes the mean to two places, and never -0."""
    return round(float(np.mean(list(values))), 2) + 0.0


def share_of(flags: Iterable[bool], topics: Sequence[str]) -> str:
    """Writes a share with its 95 % interval, as in "83 % (64-93)". What is asked about one thing
    counts once, as if its replies were all alike: so the interval is never too narrow for that."""
    share = float(np.mean(list(flags)))
    low, high = wilson(share, len(set(topics)))
    return f"{100 * share:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
