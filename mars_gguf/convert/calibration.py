"""What the chosen block is steered by: the spreads of neutral inputs, the gate's threshold and the
trust limit; and what the user should be warned of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mars_gguf.convert.geometry import Array, Centroids, RefusalScore
from mars_gguf.convert.layers import Answered, LayerScores, forced_refusals
from mars_gguf.convert.observations import Extractor, Observations
from mars_gguf.convert.prompts import require_enough
from mars_gguf.steering import Geometry

LIMITS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
CLEAR_CONTRAST = 0.2  # of a RefusalScore, below which single prompts cannot be judged by it


def accepted(checks: Mapping[str, Observations], refusal: RefusalScore) -> dict[str, Observations]:
    """By modality, the harmless prompts that say how far harmless inputs reach: what the model
    refuses by itself, if that can be told, says nothing of over-refusal.

    Raises MarsError if too few are left.
    """
    if refusal.contrast >= CLEAR_CONTRAST:
        checks = {m: o.where(refusal(o.raw_scores) < 0.5) for m, o in checks.items()}
    for m, o in checks.items():
        require_enough(
            [p.text for p in o.prompts], f"held-out harmless prompts that the model answers ({m})"
        )
    return dict(checks)


def spreads(t: Mapping[str, Array], harmful: Array) -> dict[str, float]:
    """Spread sigma_m by modality, in units of t: the standard deviation of the coordinates ``t``
    [n] of neutral inputs. Of text both classes are known: its unit is what moves t most within
    either, ``harmful`` [n] being the coordinates of the other."""
    found = {m: max(float(values.std()), 1e-3) for m, values in t.items()}
    found["text"] = max(found["text"], float(harmful.std()))
    return found


def gate_opens(thresholds: Mapping[str, float], spread: Mapping[str, float]) -> float:
    """Gate threshold z_0, in spreads: the least at which no modality's gate opens below its
    threshold, in units of t."""
    return max(threshold / spread[m] for m, threshold in thresholds.items())


def trust_limit(
    extractor: Extractor,
    answered: Mapping[str, Answered],
    base: Centroids,
    refusal: RefusalScore,
    layer: int,
    progress: bool,
) -> float:
    """The trust limit t_max: the least of LIMITS at which forced steering refuses nearly as much
    of every modality's answered prompts as at the best."""
    places = [(layer, limit) for limit in LIMITS]
    rates = forced_refusals(
        extractor, answered, base, refusal, places, title="trust limit", progress=progress
    )
    return LIMITS[int(np.argmax(rates >= 0.95 * rates.max()))]


def warnings(
    refusal: RefusalScore, scores: LayerScores, layer: int, harmful: Array, geometry: Geometry
) -> list[str]:
    """What speaks against using a vector of this block; ``harmful`` [n]: coordinates of held-out
    harmful text prompts there."""
    found = []
    if refusal.contrast < CLEAR_CONTRAST:
        found.append(
            "The model's first tokens hardly differ between harmful and harmless prompts "
            f"(contrast {refusal.contrast:.2f} of 1): it seldom refuses, so there is little "
            "refusal to steer towards."
        )
    if scores.separation[layer] < 0.9:
        found.append(
            f"Held-out harmful and harmless text overlap at the best block (AUROC "
            f"{scores.separation[layer]:.2f})."
        )
    if not scores.total[layer]:
        found.append(
            "No block has separation, effect and headroom at once (a total above 0): block "
            f"{layer} is chosen by separation and what headroom there is."
        )
    if scores.effect[layer] < 0.5:
        found.append(
            f"Forced steering turned only {scores.effect[layer]:.0%} of harmless prompts into "
            "refusals."
        )
    if geometry.gate_opens * geometry.spreads["text"] > float(np.median(harmful)):
        found.append("The gate stays closed for half of the held-out harmful text prompts.")
    return found
