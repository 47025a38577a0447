"""Calibrates the chosen block: thresholds, spreads, trust limit, their certificate, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mars_gguf.convert.extractor import Observations
from mars_gguf.convert.geometry import Array
from mars_gguf.convert.layers import LayerScores
from mars_gguf.convert.prompts import REQUESTING, Preamble, Prompt
from mars_gguf.convert.refusals import Flags, Refusals
from mars_gguf.errors import MarsError
from mars_gguf.modalities import IMAGE
from mars_gguf.statistics import (
    CONFIDENCE,
    exceedance_bound,
    grouped_upper_bound,
    largest_count,
)

LIMITS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)  # of trust
MISSED = 0.05  # of harmful text, which may lie below
OF_TEXT = 0.10  # of neutral text, may open the gate
OF_MEDIA = (0.05, 0.10, 0.20)  # likewise of neutral pictures and films, as much as is needed
MARGIN = 0.45  # spreads, beyond what the budget asks: users have other wordings
REFUSED = 0.95  # of what the gate opens for
SELDOM = 0.2  # of harmful prompts refused, beyond harmless ones


@dataclass(frozen=True)
class Opened:
    """Counts the inputs that open the gate: ``k`` of ``n`` certifying ones of a modality.

    group: their sort, "" for all of the modality. wordings: how many the ``n`` come in; those of
        one wording count as one sample.
    """

    modality: str
    group: str
    n: int
    k: int
    wordings: int

    @property
    def bound(self) -> float:
        """The share that opens it, at most, with CONFIDENCE."""
        as_samples = math.ceil(self.k * self.wordings / max(self.n, 1))
        return exceedance_bound(as_samples, self.wordings)

    def __str__(self) -> str:
        """Such as "2.7 %, 9 of 334"."""
        return f"{100 * self.k / max(self.n, 1):.1f} %, {self.k} of {self.n}"


@dataclass(frozen=True)
class Certificate:
    """Tells what held-out inputs do at the chosen block, none of which has chosen anything.

    neutral: by modality, then sort. wordings: of media, by modality, each wording that met several
    inputs, those first in which most open the gate. caught: harmful text. refused: the shares of
    harmful and of neutral text that the model refuses by itself.
    """

    neutral: list[Opened]
    wordings: dict[str, list[Opened]]
    caught: Opened
    refused: tuple[float, float]


def accepted(neutral: Mapping[str, Observations], refusals: Refusals) -> dict[str, Observations]:
    """Leaves out the neutral prompts that the model refuses by itself: they say nothing of
    over-refusal. Raises MarsError if none of a modality is left."""
    answered = {m: seen.where(~refusals.begin(seen.tokens)) for m, seen in neutral.items()}
    for m, seen in answered.items():
        if not seen.prompts:
            raise MarsError(
                f"the model refuses all of the {len(neutral[m].prompts)} held-out harmless prompts "
                f"({m}): nothing says how far harmless prompts reach"
            )
    return answered


def spreads(t: Mapping[str, Array]) -> dict[str, float]:
    """Computes sigma_m by modality, the standard deviation of t [n] of neutral inputs."""
    return {m: max(float(values.std()), 1e-3) for m, values in t.items()}


def largest_budgets(modalities: Iterable[str], given: float | None) -> dict[str, float]:
    """Lists the largest share of neutral inputs that may open the gate, by modality."""
    most = {m: OF_TEXT if m == "text" else OF_MEDIA[-1] for m in modalities}
    return most if given is None else dict.fromkeys(most, given)


def budgets(t: Mapping[str, Array], harmful: Array, given: float | None) -> dict[str, float]:
    """Chooses the share of neutral inputs that may open the gate, by modality.

    It is the one that was ``given``, or OF_TEXT for text. For a medium it is the least of OF_MEDIA
    for which all but that share of its neutral inputs, by their coordinates [n], lie less than half
    way to where ``harmful`` text [n] begins, all but MISSED of it; else the largest. A medium hides
    part of the harm in it, so that harmful requests that come with it are expected nearer to 0 than
    text.
    """
    found = largest_budgets(t, given)
    if given is None:
        near = float(np.quantile(harmful, MISSED)) / 2
        for m in set(t) - {"text"}:
            enough = [b for b in OF_MEDIA if np.quantile(t[m], 1 - b) <= near]
            found[m] = min(enough, default=found[m])
    return found


def thresholds(
    neutral: Mapping[str, Observations],
    harmful: Array,
    budgets: Mapping[str, float],
    margin: float = MARGIN,
) -> dict[str, float]:
    """Sets threshold t_m by modality: ``margin`` spreads beyond the coordinate that with CONFIDENCE
    no more than the share in ``budgets`` of neutral inputs exceed (statistics.grouped_upper_bound,
    by wording), or the largest. That holds for each of `_families` by itself, so that easy inputs
    make up for no others. For text the other side is known, too: where all but MISSED of
    ``harmful`` text [n] lies beyond, the margin begins in the middle between. The ``states`` of
    ``neutral`` are coordinates [n]."""
    found = {}
    for m, seen in neutral.items():
        wordings = wordings_of(seen.prompts)
        found[m] = max(
            grouped_upper_bound(seen.states[some], [wordings[i] for i in some], budgets[m])
            for some in _families(seen.prompts, budgets[m])
        )
    reached = float(np.quantile(harmful, MISSED))
    found["text"] = max(found["text"], (found["text"] + reached) / 2)
    spread = spreads({m: seen.states for m, seen in neutral.items()})
    return {m: t + margin * spread[m] for m, t in found.items()}


def _families(prompts: Sequence[Prompt], budget: float) -> list[list[int]]:
    """Groups prompts by whether the user wrote them, whether their content is in the picture, and
    whether anything stands before them: all together, and those families that are large enough to
    show ``budget``."""
    families: dict[tuple[bool, bool, bool], list[int]] = {}
    for i, p in enumerate(prompts):
        key = p.own, p.form in REQUESTING, p.context.name == Preamble().name
        families.setdefault(key, []).append(i)
    wordings = wordings_of(prompts)
    large = [
        some
        for some in families.values()
        if largest_count(len({wordings[i] for i in some}), budget) >= 0
    ]
    return [list(range(len(prompts))), *large]


def wordings_of(prompts: Sequence[Prompt]) -> list[str]:
    """Lists the wording of each prompt: one of several prompts, or its own words."""
    return [p.wording or p.text for p in prompts]


def trust_limit(rates: Mapping[float, float]) -> float:
    """Chooses the trust limit t_max: the least at which forced steering refuses REFUSED of what it
    is tried on; where none does, the least that refuses nearly as much as the best. The next one
    is taken where that is enough as well, because other requests resist more. ``rates``: the share
    refused at each."""
    best = max(rates.values())
    enough = REFUSED if best >= REFUSED else REFUSED * best
    least = min(limit for limit, rate in rates.items() if rate >= enough)
    further = min((limit for limit in rates if limit > least), default=least)
    return further if rates[further] >= enough else least


def certify(
    neutral: Mapping[str, Observations],
    harmful: Array,
    opens: Mapping[str, float],
    refused: tuple[float, float],
) -> Certificate:
    """Counts which certifying inputs open the gate. The ``states`` of ``neutral`` are coordinates
    [n] at the chosen block, as ``harmful`` [n] are of harmful text."""
    rows, by_wording = [], {}
    for m, seen in neutral.items():
        opened, wordings = seen.states > opens[m], wordings_of(seen.prompts)
        rows.append(_counted(m, "", opened, wordings, [True] * len(wordings)))
        for sort in _sorts(seen.prompts):
            some = [sort in _sorts([p]) for p in seen.prompts]
            rows.append(_counted(m, sort, opened, wordings, some))
        if m != "text":
            each = [
                _counted(m, w, opened, wordings, [w == one for one in wordings])
                for w in set(wordings)
            ]
            several = [one for one in each if one.n > 1]
            by_wording[m] = sorted(several, key=lambda one: (-one.k / one.n, -one.n, one.group))
    n_caught = int((harmful > opens["text"]).sum())
    caught = Opened("text", "harmful", len(harmful), n_caught, len(harmful))
    return Certificate(rows, by_wording, caught, refused)


def _counted(
    modality: str, group: str, opened: Flags, wordings: Sequence[str], some: Sequence[bool]
) -> Opened:
    """Counts which of ``some`` [n] inputs opened the gate, and how many wordings they come in."""
    different = {one for one, counts in zip(wordings, some, strict=True) if counts}
    k = int(opened[np.asarray(some)].sum())
    return Opened(modality, group, sum(some), k, len(different))


def _sorts(prompts: Sequence[Prompt]) -> list[str]:
    """Lists the sorts of these prompts: forms of text, kinds and number of pictures, contexts."""
    forms = [f"form: {p.form}" for p in prompts if p.form]
    kinds = [f"picture: {p.kind}" for p in prompts if p.images]
    several = ["several pictures" for p in prompts if p.modality == IMAGE.name and p.images[1:]]
    contexts = [f"context: {p.context.name}" for p in prompts]
    return list(dict.fromkeys(forms + kinds + several + contexts))


def warnings(
    refusals: Refusals,
    scores: LayerScores,
    layer: int,
    certificate: Certificate,
    budgets: Mapping[str, float],
) -> list[str]:
    """Says what speaks against using a vector of this block, in sentences."""
    found = []
    harmful, harmless = certificate.refused
    if harmful - harmless < SELDOM:
        found.append(
            f"This vector will do little, because the model seldom refuses: {harmful:.0%} of "
            f"held-out harmful prompts, {harmless:.0%} of harmless ones. There is little refusal "
            "to steer towards."
        )
    elif not refusals.judged:
        found.append(
            "No refusal in English was found among the model's replies: refusals were told by "
            "their first tokens alone."
        )
    if scores.effect[layer] < 0.5:
        found.append(
            "This vector will do little, because forced steering turned only "
            f"{scores.effect[layer]:.0%} of the replies it was tried on into refusals."
        )
    caught = certificate.caught
    if caught.k < caught.n / 2:
        found.append(
            "This vector will do little, because the gate stays closed for "
            f"{1 - caught.k / caught.n:.0%} of held-out harmful text."
        )
    for row in certificate.neutral:
        budget = budgets[row.modality]
        if not row.group and largest_count(row.wordings, budget) < 0:
            found.append(
                f"{row.modality}: {row.wordings} wordings are too few to show that at most "
                f"{budget:.1%} open the gate; with {CONFIDENCE:.0%} confidence it is at most "
                f"{row.bound:.1%}."
            )
    return found
