"""Refusal geometry from measured hidden states. numpy in, numpy out; no model.

Shapes: n prompts, L blocks, d = n_embd, V = n_vocab. Coordinates t are dimensionless
(mars_gguf.steering).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mars_gguf.steering import Geometry

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Centroids:
    """Means of text prompts after every block: ``safe`` and ``unsafe``, float64 [L, d]."""

    safe: Array
    unsafe: Array

    @property
    def direction(self) -> Array:
        """r = mu_u - mu_s, [L, d]."""
        return self.unsafe - self.safe

    @property
    def distance(self) -> Array:
        """D, [L]."""
        return np.asarray(np.linalg.norm(self.direction, axis=-1))


def centroids(harmless: Array, harmful: Array) -> Centroids:
    """Centroids of hidden states [n, L, d] of harmless and of harmful text prompts."""
    return Centroids(harmless.mean(0, dtype=np.float64), harmful.mean(0, dtype=np.float64))


def readout(base: Centroids, deviations: Sequence[Array], shrinkage: float = 1.0) -> Array:
    """Read-out w after every block, [L, d]: of all w with <w, r> = 1 the one that neutral inputs
    move least (a minimum-variance distortionless response, as in adaptive beamforming).

    ``deviations`` holds, for each modality, neutral hidden states less their mean, [n, L, d]: what
    the form of a prompt, the subject of a picture or the medium do to the state without any harm in
    it. With their covariance C, averaged over the modalities, and lambda = ``shrinkage`` times its
    mean variance, w is (C + lambda 1)^-1 r, scaled. Solved in the space of the n samples
    (Woodbury), so that n_embd may be large. NaN where the centroids coincide.
    """
    r = base.direction
    w = np.empty_like(r)
    for layer in range(r.shape[0]):
        a = np.concatenate([d[:, layer] / np.sqrt(len(d)) for d in deviations]).astype(np.float64)
        a /= np.sqrt(len(deviations))
        ridge = shrinkage * float((a * a).sum()) / r.shape[1]
        if ridge > 0:
            inner = a @ a.T + ridge * np.eye(len(a))
            w[layer] = r[layer] - a.T @ np.linalg.solve(inner, a @ r[layer])
        else:
            w[layer] = r[layer]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(w / np.einsum("ld,ld->l", w, r)[:, None])


def coordinates(states: Array, base: Centroids, w: Array) -> Array:
    """t = <w, h - mu_s> after every block: states [n, L, d] (re-centred for media) to [n, L]."""
    return np.asarray(np.einsum("nld,ld->nl", states - base.safe, w))


def stratum_means(values: Array, strata: Sequence[str]) -> dict[str, Array]:
    """Mean of ``values`` [n, ...] within each named stratum, by name in order."""
    names = np.asarray(strata)
    return {name: values[names == name].mean(0) for name in sorted(set(strata))}


def robust_shift(states: Array, strata: Sequence[str], base: Centroids, w: Array) -> Array:
    """Shift delta_m of a medium after every block, [L, d], from neutral probes [n, L, d].

    Each probe belongs to a stratum (a kind of picture with a form of prompt). The shift is the
    mean of the probes less the safe centroid, corrected along the refusal direction so that its
    coordinate is the median over the strata's coordinates: one odd form of prompt, or one odd kind
    of picture, then moves the gate little. Across the direction the correction changes nothing.
    """
    mean = states.mean(0, dtype=np.float64)
    means = np.stack(list(stratum_means(coordinates(states, base, w), strata).values()))
    correction = np.median(means, axis=0) - coordinates(mean[None], base, w)[0]
    return np.asarray(mean - base.safe + np.nan_to_num(correction)[:, None] * base.direction)


@dataclass(frozen=True)
class Axes:
    """The coordinate t of every block: where it is 0 and 1, the read-out w [L, d], and by modality
    the shift delta_m [L, d], which is 0 for text."""

    base: Centroids
    readout: Array
    shifts: Mapping[str, Array]

    def t(self, states: Array, modality: str) -> Array:
        """Coordinates [n, L] of hidden states [n, L, d], re-centred as of ``modality``."""
        return coordinates(states - self.shifts[modality], self.base, self.readout)

    def at(
        self, layer: int, spreads: dict[str, float], opens: float, ramp: float, limit: float
    ) -> Geometry:
        """The geometry of one block, in float32, with a gate and a trust limit measured there."""
        return Geometry(
            safe=np.asarray(self.base.safe[layer], np.float32),
            unsafe=np.asarray(self.base.unsafe[layer], np.float32),
            readout=np.asarray(self.readout[layer], np.float32),
            shifts={m: np.asarray(shift[layer], np.float32) for m, shift in self.shifts.items()},
            spreads=spreads,
            gate_opens=opens,
            gate_ramp=ramp,
            trust_limit=limit,
        )


@dataclass(frozen=True)
class RefusalScore:
    """How much a first token looks like this model's answers to harmful prompts: 0 as for held-out
    harmless ones, 1 as for held-out harmful ones. ``harmless`` and ``harmful`` are the mean raw
    scores of those, by the ``weights`` of the tokens [V] (posterior_weights)."""

    weights: Array
    harmless: float
    harmful: float

    @classmethod
    def of(cls, weights: Array, harmless: Array, harmful: Array) -> RefusalScore:
        """From raw scores of held-out prompts, [n] each."""
        return cls(weights, float(harmless.mean()), float(harmful.mean()))

    @property
    def contrast(self) -> float:
        """Difference of the two means, at most 1: near 0 for a model that starts all its replies
        alike."""
        return self.harmful - self.harmless

    def __call__(self, raw: Array) -> Array:
        """Scores of raw scores, any shape. All 0 without contrast."""
        return np.asarray((raw - self.harmless) / self.contrast if self.contrast > 0 else 0 * raw)

    def refuses(self, logits: Array) -> npt.NDArray[np.bool_]:
        """Whether first tokens with these logits [n, V] look more like refusals than not, [n]."""
        return np.asarray(self(raw_scores(logits, self.weights)) > 0.5)


def posterior_weights(harmful: Array, harmless: Array) -> Array:
    """Weight of every token in the raw refusal score, [V], from mean first-token probabilities [V]
    of harmful and of harmless prompts: the posterior p(harmful | token) under equal priors.

    So the model's own replies say what a refusal begins with: no list of words.
    """
    rare = 1e-3  # tokens rarer than this on both sides say nothing
    return np.asarray(harmful / (harmful + harmless + rare))


def softmax(logits: Array) -> Array:
    """Probabilities [n, V] of logits [n, V]."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def raw_scores(logits: Array, weights: Array) -> Array:
    """Raw refusal scores [n] of first tokens: <p, weights> for the distributions p that logits
    [n, V] give."""
    return np.asarray(softmax(logits) @ weights)
