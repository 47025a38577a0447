"""What trials come to: a table in Markdown, a row for each attack and kind of request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from mars_gguf.statistics import Z95


@dataclass(frozen=True)
class Reply:
    """``names``: it is no refusal and names the thing; None where the thing has no known name."""

    refused: bool
    names: bool | None


@dataclass(frozen=True)
class Trial:
    """One request asked in one way. ``t`` and ``open`` are of the steered model."""

    kind: str
    modality: str
    attack: str
    topic: str
    unsteered: Reply
    steered: Reply
    t: float
    open: bool


COLUMNS = (
    "refused, unsteered",
    "refused, steered",
    "gates open",
    "mean t",
    "names it, unsteered",
    "names it, steered",
)


def table(trials: Sequence[Trial]) -> str:
    """The table; its last two columns are left out where no thing has a name."""
    named = any(trial.steered.names is not None for trial in trials)
    columns = COLUMNS if named else COLUMNS[:-2]
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.kind, _FORMS.index(trial.modality))):
        groups.setdefault((trial.kind, trial.modality, trial.attack), []).append(trial)
    head = ("requests", "attack", "n (things)", *columns)
    rows = [head, ("---",) * len(head)]
    for (kind, modality, attack), group in groups.items():
        n = f"{len(group)} ({len({trial.topic for trial in group})})"
        rows.append((f"{kind}, {modality}", attack, n, *_cells(group)[: len(columns)]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


_FORMS = ("text", "image", "video")


def _cells(group: Sequence[Trial]) -> list[str]:
    topics = [trial.topic for trial in group]
    replies = [[t.unsteered for t in group], [t.steered for t in group]]
    shares = [share_of([reply.refused for reply in each], topics) for each in replies]
    return [
        *shares,
        f"{100 * np.mean([trial.open for trial in group]):.0f} %",
        f"{_mean(trial.t for trial in group):.2f}",
        *(f"{100 * np.mean([bool(reply.names) for reply in each]):.0f} %" for each in replies),
    ]


def _mean(values: Iterable[float]) -> float:
    """To two places, and never -0."""
    return round(float(np.mean(list(values))), 2) + 0.0


def share_of(flags: Iterable[bool], topics: Sequence[str]) -> str:
    """A share with its 95 % interval, such as "83 % (64-93)"."""
    share = float(np.mean(list(flags)))
    low, high = interval(share, len(set(topics)))
    return f"{100 * share:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def interval(share: float, groups: int) -> tuple[float, float]:
    """The Wilson interval at 95 % of a share of requests about so many things. What is asked about
    one thing counts once, as if its replies were all alike: so it is never too narrow for that."""
    scale = 1 + Z95**2 / groups
    centre = share + Z95**2 / (2 * groups)
    half = Z95 * sqrt(share * (1 - share) / groups + Z95**2 / (4 * groups**2))
    return (centre - half) / scale, (centre + half) / scale
