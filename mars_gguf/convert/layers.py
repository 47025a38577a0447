"""Chooses the block: by how much harmful text each candidate tells from harmless inputs of every
modality, and by whether steering there makes the model refuse.

Shapes: n prompts, L blocks, d = n_embd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mars_gguf.convert.extractor import Advance, Extractor, Opening
from mars_gguf.convert.geometry import Array, Centroids
from mars_gguf.convert.prompts import Prompt, Push
from mars_gguf.convert.refusals import N_TOKENS, Refusals
from mars_gguf.errors import MarsError
from mars_gguf.statistics import auroc
from mars_gguf.steering import strength

FORCED_LIMIT = 3.0
FINALISTS = 5  # blocks at which steering is tried
TRIED = 20  # prompts of each group that it is tried on

Place = tuple[int, float]  # a block, and a trust limit there


@dataclass(frozen=True)
class LayerScores:
    """The scores that a block is chosen by, each [L], NaN outside the candidates.

    separation: AUROC of t, harmful against harmless text.
    thresholds: by modality, the t that all but the largest share of neutral inputs that may open
        the gate stay below.
    reach: share of harmful text above the threshold, the mean over the modalities.
    effect: share of prompts that forced steering turns into refusals; NaN where it was not tried.
    """

    separation: Array
    thresholds: Mapping[str, Array]
    reach: Array
    effect: Array

    @property
    def total(self) -> Array:
        """reach * effect, [L]; NaN where steering was not tried."""
        return np.asarray(self.reach * self.effect)

    @property
    def best(self) -> int:
        """The block of the largest total; of several, the first in the order of `finalists`."""
        tried = [layer for layer in self.ranked() if not np.isnan(self.total[layer])]
        return max(tried, key=lambda layer: self.total[layer])

    def ranked(self) -> list[int]:
        """Ranks the candidates by reach, those alike by how low the highest threshold is."""
        worst = np.max(list(self.thresholds.values()), axis=0)
        candidates = np.flatnonzero(~np.isnan(self.reach)).tolist()
        return sorted(candidates, key=lambda layer: (-self.reach[layer], worst[layer]))

    def finalists(self) -> list[int]:
        """The first FINALISTS of the candidates, by rank."""
        return self.ranked()[:FINALISTS]


@dataclass(frozen=True)
class Trial:
    """Prompts that steering is tried on, and their coordinates [n, L]."""

    prompts: list[Prompt]
    t: Array

    def sample(self) -> Trial:
        """Takes at most TRIED of them, evenly spaced, so that all strata are among them."""
        n = min(TRIED, len(self.prompts))
        return self._of([i * len(self.prompts) // n for i in range(n)])

    def where(self, keep: npt.NDArray[np.bool_]) -> Trial:
        """Chooses the prompts for which ``keep`` [n] is true."""
        return self._of(np.flatnonzero(keep).tolist())

    def _of(self, chosen: list[int]) -> Trial:
        return Trial([self.prompts[i] for i in chosen], self.t[chosen])


@dataclass(frozen=True)
class Forced:
    """Tells what forced steering did at one place: the share of prompts refused, the least over the
    trials, and the replies of the first trial."""

    rate: float
    replies: list[Opening]


def candidates(n_layer: int, layers: tuple[int, int] | None) -> list[int]:
    """Lists the blocks to choose from: the range ``layers``, first and last, or all but the first.
    Raises MarsError for a range outside the model."""
    first, last = layers or (1, n_layer - 1)
    if not 1 <= first <= last < n_layer:
        raise MarsError(
            f"layers: found {first} to {last}, expected a range within 1 to {n_layer - 1}"
        )
    return list(range(first, last + 1))


def score_layers(
    harmful: Array,
    neutral: Mapping[str, Array],
    layers: Sequence[int],
    budgets: Mapping[str, float],
) -> LayerScores:
    """Scores ``layers``, before steering is tried, from the coordinates [n, L] of harmful text and
    by modality of neutral inputs, of which a share in ``budgets`` may open the gate."""
    chosen = np.full(harmful.shape[1], np.nan)
    chosen[list(layers)] = 0.0
    separation = chosen.copy()
    for layer in layers:
        separation[layer] = auroc(harmful[:, layer], neutral["text"][:, layer])
    thresholds = {m: chosen + np.quantile(t, 1 - budgets[m], axis=0) for m, t in neutral.items()}
    above = [(harmful > threshold).mean(0) for threshold in thresholds.values()]
    return LayerScores(separation, thresholds, chosen + np.mean(above, axis=0), chosen * np.nan)


def force(
    extractor: Extractor,
    trials: Sequence[Trial],
    base: Centroids,
    refusals: Refusals,
    places: Sequence[Place],
    advance: Advance,
) -> list[Forced]:
    """Steers the prompts of all ``trials`` with the gate fully open at each of ``places``."""
    rates = np.ones(len(places))
    kept: list[list[Opening]] = []

    def push(layer: int, limit: float, t: Array) -> Push:
        alpha = strength(t, np.ones_like(t), float(base.distance[layer]), limit)
        unit = base.direction[layer] / base.distance[layer]
        return layer, np.asarray(alpha[:, None] * unit, np.float32)

    for trial in trials:
        found: list[list[Opening]] = [[Opening(0, "")] * len(trial.prompts) for _ in places]
        for indices, session in extractor.sessions(trial.prompts):
            pushes = [push(layer, limit, trial.t[indices, layer]) for layer, limit in places]
            for k, replies in enumerate(session.steered_replies(pushes, N_TOKENS)):
                for i, reply in zip(indices, replies, strict=True):
                    found[k][i] = reply
                advance(len(indices))
        rates = np.minimum(rates, [refusals.among(replies).mean() for replies in found])
        kept = kept or found
    return [Forced(float(rate), replies) for rate, replies in zip(rates, kept, strict=True)]
