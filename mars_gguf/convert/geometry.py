"""Computes refusal geometry from measured hidden states. numpy in, numpy out; no model.

Shapes: n prompts, L blocks, d = n_embd. Coordinates t are dimensionless (mars_gguf.steering).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mars_gguf.steering import Geometry

Array = npt.NDArray[np.floating]
SHRINKAGE = 0.5  # a ridge of the mean variance; known rules shrink less and separate worse


@dataclass(frozen=True)
class Centroids:
    """The means of text prompts after every block: ``safe`` and ``unsafe``, float64 [L, d]."""

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
    """Computes the centroids of hidden states [n, L, d] of harmless and of harmful text prompts."""
    return Centroids(harmless.mean(0, dtype=np.float64), harmful.mean(0, dtype=np.float64))


def readout(
    base: Centroids,
    deviations: Sequence[Array],
    shrinkage: float = SHRINKAGE,
    neutral: Array | None = None,
) -> Array:
    """Computes the read-out w after every block, [L, d]: a shrunken Fisher discriminant, which of
    all w with <w, r> = 1 tells harmful text best from what is neutral.

    ``neutral`` is the mean state of all neutral text, borderline requests among it, [L, d]; the
    safe centroid if it is None.

    ``deviations`` holds, for each modality, neutral hidden states less their mean, [n, L, d]: what
    the form of a prompt, its context, the subject of a picture or the medium do to the state
    without any harm in it. With C their covariance, averaged over the modalities, and m = tr C / d,
    w is ((1 - rho) C + rho m 1)^-1 (mu_u - neutral), scaled; rho is the ``shrinkage``, with 1 w is
    the projection on r. NaN where the centroids coincide.
    """
    r = base.direction
    away = r if neutral is None else base.unsafe - neutral
    w = np.empty_like(r)
    for layer in range(r.shape[0]):
        parts = [d[:, layer].astype(np.float64) / np.sqrt(len(d)) for d in deviations]
        a = np.concatenate(parts) / np.sqrt(len(parts))
        found = r[layer] if shrinkage == 1.0 else _solved(a, away[layer], shrinkage)
        # Where neutral text lies beyond harmful text, away from it is no way towards harm.
        w[layer] = found if found @ r[layer] > 0 else _solved(a, r[layer], shrinkage)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(w / np.einsum("ld,ld->l", w, r)[:, None])


def _solved(a: Array, r: Array, rho: float) -> Array:
    """Solves ((1 - rho) C + rho m 1) w = r but for the scale of w, in the space of the n samples
    (Woodbury), so that n_embd may be large."""
    # Of fewer samples than dimensions, C itself cannot be inverted.
    ridge = max(rho, 1e-9) * float((a * a).sum()) / a.shape[1]
    if ridge == 0.0:
        return r
    inner = (1 - rho) * (a @ a.T) + ridge * np.eye(len(a))
    return np.asarray(r - (1 - rho) * (a.T @ np.linalg.solve(inner, a @ r)))


def coordinates(states: Array, base: Centroids, w: Array) -> Array:
    """Computes t = <w, h - mu_s>, [n, L], of states [n, L, d] (re-centred for media)."""
    return np.asarray(np.einsum("nld,ld->nl", states - base.safe, w))


def robust_shift(states: Array, strata: Sequence[str], base: Centroids, w: Array) -> Array:
    """Computes the shift delta_m of a medium after every block, [L, d], from neutral probes
    [n, L, d].

    Each probe belongs to a stratum (a kind of picture with a form of prompt). The shift is the
    mean of the probes less the safe centroid, corrected along the refusal direction so that its
    coordinate is the median over the strata's coordinates: one odd form of prompt, or one odd kind
    of picture, then moves the gate little. Across the direction the correction changes nothing.
    """
    mean, t, names = (
        states.mean(0, dtype=np.float64),
        coordinates(states, base, w),
        np.array(strata),
    )
    means = [t[names == name].mean(0) for name in sorted(set(strata))]
    correction = np.median(means, axis=0) - coordinates(mean[None], base, w)[0]
    return np.asarray(mean - base.safe + np.nan_to_num(correction)[:, None] * base.direction)


@dataclass(frozen=True)
class Axes:
    """The coordinate t of every block: where it is 0 and 1, the read-out w [L, d], and by modality
    the shift delta_m [L, d], which is 0 for text."""

    base: Centroids
    readout: Array
    shifts: Mapping[str, Array]

    @property
    def sha256(self) -> str:
        """The hash of all of them, hexadecimal."""
        arrays = (self.base.safe, self.readout, *self.shifts.values())
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    def t(self, states: Array, modality: str) -> Array:
        """Computes the coordinates [n, L] of hidden states [n, L, d] of ``modality``."""
        return coordinates(states - self.shifts[modality], self.base, self.readout)

    def at(
        self,
        layer: int,
        spreads: dict[str, float],
        thresholds: dict[str, float],
        ramp: float,
        limit: float,
    ) -> Geometry:
        """Puts together the geometry of one block with the gate that was measured there."""
        axes = self.base.safe, self.base.unsafe, self.readout
        safe, unsafe, w = (np.asarray(axis[layer], np.float32) for axis in axes)
        shifts = {m: np.asarray(shift[layer], np.float32) for m, shift in self.shifts.items()}
        return Geometry(safe, unsafe, w, shifts, spreads, thresholds, ramp, limit)
