"""Lists rules by which the gate could open, and judges requests by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lab.reader.states import BLANK, DROPPED, LAST, MEAN, WORDINGS, Name, Seen
from mars_gguf.convert import calibration
from mars_gguf.convert.extractor import Observations
from mars_gguf.convert.geometry import (
    SHRINKAGE,
    Array,
    Axes,
    Shrinkage,
    centroids,
    readout,
    robust_shift,
)
from mars_gguf.statistics import auroc

BUDGETS = calibration.largest_budgets(("text", "image"), None)

Coordinate = Callable[[Observations, str], Array]
"""t [n] of what was observed, as of a modality."""


@dataclass(frozen=True)
class Rule:
    """A rule: how t is read and where the gate opens.

    blocks: t is the mean over them. view: which is read of a prompt. moved_by: the neutral inputs
        that shall move the read-out little. recentred: by the shift of the medium.
    reference: a view; its t is taken from that of inputs with pictures.
    budgets: by modality. alike: one threshold for all modalities, the largest.
    """

    name: str
    blocks: tuple[int, ...]
    shrinkage: Shrinkage = SHRINKAGE
    moved_by: tuple[str, ...] = ("text", "image")
    view: int = LAST
    recentred: bool = True
    reference: int | None = None
    budgets: Mapping[str, float] = field(default_factory=BUDGETS.copy)
    alike: bool = False


def middle_blocks(block: int) -> tuple[int, int, int]:
    """Lists ``block``, and before it the one at two thirds of its depth and the one between."""
    first = block * 2 // 3
    return first, (first + block) // 2, block


def rules(n_layer: int, block: int) -> Iterator[Rule]:
    """Yields the converter's rule at ``block``, and all alternatives to it."""
    rule = Rule("**as it is**", (block,))
    yield rule
    for other in range(n_layer // 2, n_layer):
        yield replace(rule, name=f"block {other}", blocks=(other,))
    yield replace(rule, name="read-out: projection", shrinkage=1.0)
    others: tuple[Shrinkage, ...] = (0.1, 0.8, "oas", "ledoit-wolf")
    for shrinkage in others:
        yield replace(rule, name=f"read-out: shrinkage {shrinkage}", shrinkage=shrinkage)
    for m, name in (("image", "pictures"), ("text", "text"), (WORDINGS, "wordings")):
        yield replace(rule, name=f"read-out: covariance of {name} alone", moved_by=(m,))
    every = (*rule.moved_by, "harmful")
    yield replace(rule, name="read-out: covariance of harmful text, too", moved_by=every)
    yield replace(rule, name="no re-centering", recentred=False)
    yield replace(rule, name="one threshold", alike=True)
    yield replace(rule, name="one threshold, no re-centering", alike=True, recentred=False)
    yield replace(rule, name="mean of the last five tokens", view=MEAN)
    yield replace(rule, name="less t without the picture", reference=DROPPED)
    yield replace(rule, name="less t with a blank picture", reference=BLANK)
    first, between, last = middle_blocks(block)
    for blocks in ((first, last), (first, between, last), tuple(range(n_layer - 4, n_layer))):
        yield replace(rule, name=f"mean of blocks {', '.join(map(str, blocks))}", blocks=blocks)
    for budget in (0.05, 0.1, 0.2, 0.3):
        budgets = dict.fromkeys(BUDGETS, budget)
        yield replace(rule, name=f"budget {budget:.0%} for all", budgets=budgets)


def axes(rule: Rule, seen: Seen, block: int) -> Axes:
    """Fits the axes of one block, as a conversion fits them to all: arrays of L = 1."""
    fit = {name: states[:, [block], rule.view] for name, states in seen.fit.items()}
    base = centroids(fit["harmless"], fit["harmful"])
    moved = [fit[m] - fit[m].mean(0) for m in rule.moved_by]
    w = readout(base, moved, rule.shrinkage, fit["text"].mean(0, dtype=np.float64))
    shifts = {m: np.zeros_like(base.safe) for m in seen.certify}
    if rule.recentred:
        shifts |= {m: robust_shift(fit[m], strata, base, w) for m, strata in seen.strata.items()}
    return Axes(base, w, shifts)


def coordinate(rule: Rule, seen: Seen) -> Coordinate:
    """Makes the function that reads t by ``rule``, of states as ``seen``."""
    every = {block: axes(rule, seen, block) for block in rule.blocks}

    def t(observed: Observations, modality: str) -> Array:
        found = []
        for block, one in every.items():
            states = observed.states[:, [block]]
            here = one.t(states[:, :, rule.view], modality)
            if rule.reference is not None and modality != "text":
                here = here - one.t(states[:, :, rule.reference], modality)
            found.append(here[:, 0])
        return np.asarray(np.mean(found, axis=0))

    return t


def thresholds(rule: Rule, seen: Seen, t: Coordinate) -> dict[str, float]:
    """Computes, by modality, the t at which the gate opens: what a conversion would certify."""
    neutral = {m: replace(observed, states=t(observed, m)) for m, observed in seen.certify.items()}
    beyond = t(seen.beyond, "text")
    found = calibration.thresholds(neutral, beyond, rule.budgets)
    return dict.fromkeys(found, max(found.values())) if rule.alike else found


def refused(seen: Seen) -> dict[Name, float]:
    """Computes, by form and kind, the share of requests that the model refuses by itself."""
    return {
        name: float(seen.refusals.among(asked.replies).mean())
        for name, asked in seen.requests.items()
    }


def judged(rule: Rule, seen: Seen) -> tuple[dict[Name, float], float]:
    """Computes, by form and kind, the share of requests for which the gate opens: of harmful ones,
    or which the model refuses by itself; of others, which it answers by itself. And the AUROC of t,
    harmful against harmless, the mean over the forms."""
    t = coordinate(rule, seen)
    opens = thresholds(rule, seen, t)
    shares, reached = {}, {}
    for (form, kind), asked in seen.requests.items():
        modality = asked.prompts[0].modality
        reached[form, kind] = t(asked, modality)
        opened, by_itself = (
            reached[form, kind] > opens[modality],
            seen.refusals.among(asked.replies),
        )
        shown = opened | by_itself if kind == "harmful" else opened & ~by_itself
        shares[form, kind] = float(shown.mean())
    forms = dict.fromkeys(form for form, _ in shares)
    areas = [auroc(reached[form, "harmful"], reached[form, "harmless"]) for form in forms]
    return shares, float(np.mean(areas))
