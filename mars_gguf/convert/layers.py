"""The choice of the block: what each candidate can tell apart, how much room it leaves to media,
and whether steering there makes the model refuse.

Shapes: n prompts, L blocks, d = n_embd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mars_gguf.convert.geometry import Array, Centroids, RefusalScore
from mars_gguf.convert.observations import Extractor, Observations
from mars_gguf.convert.prompts import Prompt, Rows
from mars_gguf.errors import MarsError
from mars_gguf.statistics import auroc
from mars_gguf.steering import strength

FORCED_LIMIT = 2.0
EFFECT_PROMPTS = 32


@dataclass(frozen=True)
class LayerScores:
    """Why a block is chosen, each [L], NaN outside the candidates.

    separation: AUROC of t on held-out text prompts.
    threshold: by modality, the t that all but a share ``budget`` of neutral inputs stay below.
    effect: share of held-out harmless prompts, of those not refused anyway, whose first token
        becomes a refusal when steering is forced, the least over the modalities.
    """

    separation: Array
    threshold: Mapping[str, Array]
    effect: Array

    @property
    def headroom(self) -> Array:
        """1 - threshold of the worst modality, within 0 to 1, [L]: how much of the way between the
        centroids a medium may take from harmful content before the gate misses it."""
        worst = np.max(list(self.threshold.values()), axis=0)
        return np.asarray(1 - np.clip(worst, 0, 1))

    @property
    def total(self) -> Array:
        """separation * effect * headroom, [L]."""
        return np.asarray(self.separation * self.effect * self.headroom)

    @property
    def best(self) -> int:
        """The block of the largest total; if all are 0, of the largest separation * headroom; if
        those are 0 too, of the largest separation."""
        ranks = self.total, self.separation * self.headroom, self.separation
        return int(np.nanargmax(next((r for r in ranks if np.nanmax(r) > 0), ranks[-1])))


@dataclass(frozen=True)
class Answered:
    """Harmless prompts of one modality that the model does not refuse by itself, and their
    coordinates [n, L]: what forced steering can turn into refusals."""

    prompts: list[Prompt]
    t: Array

    @classmethod
    def of(cls, observed: Observations, t: Array, refusal: RefusalScore) -> Answered:
        """Those of the ``observed`` prompts, with coordinates ``t``, that are answered."""
        kept = refusal(observed.raw_scores) <= 0.5
        return cls(observed.where(kept).prompts, t[kept])

    def sample(self, count: int) -> Answered:
        """``count`` of them, in an order in which any beginning is a fair sample of all strata."""
        n = len(self.prompts)
        order = [i for offset in range(7) for i in range(offset, n, 7)][:count]
        return Answered([self.prompts[i] for i in order], self.t[np.asarray(order, int)])


def candidates(n_layer: int, layers: tuple[int, int] | None) -> list[int]:
    """Blocks to choose from: the range ``layers``, first and last, or from 1 to 80 % of the depth.
    Raises MarsError for a range outside the model."""
    first, last = layers or (1, max(1, int(0.8 * n_layer)))
    if not 1 <= first <= last < n_layer:
        raise MarsError(
            f"layers: found {first} to {last}, expected a range within 1 to {n_layer - 1}"
        )
    return list(range(first, last + 1))


def separation(harmful: Array, harmless: Array, layers: Sequence[int]) -> Array:
    """AUROC of coordinates [n, L] of harmful and of harmless prompts at ``layers``, [L]."""
    found = np.full(harmful.shape[1], np.nan)
    for layer in layers:
        found[layer] = auroc(harmful[:, layer], harmless[:, layer])
    return found


def effect(
    extractor: Extractor,
    answered: Mapping[str, Answered],
    base: Centroids,
    refusal: RefusalScore,
    layers: Sequence[int],
    progress: bool,
) -> Array:
    """Share of answered prompts that forced steering at ``layers`` turns into refusals, [L], on
    EFFECT_PROMPTS prompts of each modality: see `forced_refusals`."""
    sample = {m: one.sample(EFFECT_PROMPTS) for m, one in answered.items()}
    places = [(layer, FORCED_LIMIT) for layer in layers]
    found = np.full(extractor.n_layer, np.nan)
    found[list(layers)] = forced_refusals(
        extractor, sample, base, refusal, places, title="layer scores", progress=progress
    )
    return found


def forced_refusals(
    extractor: Extractor,
    answered: Mapping[str, Answered],
    base: Centroids,
    refusal: RefusalScore,
    places: Sequence[tuple[int, float]],
    *,
    title: str,
    progress: bool,
) -> Array:
    """For each of ``places``, (block, trust limit), the share of answered prompts that forced
    steering turns into refusals, the least over the modalities; 0 where none is answered."""
    rates = np.ones(len(places))
    total = len(places) * sum(len(one.prompts) for one in answered.values())
    with tqdm(total=total, desc=title, unit="decode", disable=not progress) as bar:
        for one in answered.values():
            count = np.zeros(len(places))
            for indices, session in extractor.sessions(one.prompts):
                pushes = [
                    (layer, _additions(base, one.t[indices, layer], layer, limit))
                    for layer, limit in places
                ]
                for k, logits in enumerate(session.steered_each(pushes)):
                    count[k] += refusal.refuses(logits).sum()
                    bar.update(len(indices))
            rates = np.minimum(rates, count / max(1, len(one.prompts)))
    return rates


def _additions(base: Centroids, t: Array, layer: int, limit: float) -> Rows:
    """What forced steering (gate fully open) adds at ``layer``: [n, d] for coordinates [n]."""
    alpha = strength(t, np.ones_like(t), float(base.distance[layer]), limit)
    unit = base.direction[layer] / base.distance[layer]
    return np.asarray(alpha[:, None] * unit, np.float32)
