"""The mathematics of MARS: re-centering, coordinate, gate, trust-bounded strength; and the Policy
that applies it to what a prompt's hidden state says.

numpy in, numpy out; no model. Everything is stated for one block and for the hidden state h of
the last prompt token, float32 of shape [n_embd]. With the centroids mu_s (safe) and mu_u (unsafe),
both means over text prompts:

    r = mu_u - mu_s,  D = ||r||,  r_hat = r / D            refusal direction
    h~ = h - delta_m                                       re-centering for modality m
    t = <w, h~ - mu_s>,  <w, r> = 1                        0 at the safe, 1 at the unsafe centroid
    z = (t - t_m) / sigma_m                                beyond the threshold of modality m,
                                                           in spreads of its neutral inputs
    s = min(1, ReLU(z) / ramp)                             gate
    alpha = s * D * ReLU(t_max - t)                        strength, bounded by the trust region
    h' = h + alpha * r_hat                                 steered state

Several pictures hide one another: t of a prompt is about a mean over them. So each of n is asked
about alone, too, at a threshold that is f(n) spreads higher, and the gate opens by the largest z:

    f(n) = q(1 - b / n) - q(1 - b)                         q: quantile of the normal distribution

Of n values of a normal distribution, one lies f(n) beyond a bound that one alone exceeds with
probability b about as seldom.

The read-out w says where a state lies, r_hat is where it is pushed; pushing by alpha moves t by
alpha / D whatever w is. The plain choice is w = r / D^2, the projection on r_hat. A better one is
measured by the converter: of all w with <w, r> = 1, the one that neutral inputs move least
(mars_gguf.convert.geometry.readout).

After D'Inca, Mancini and Sebe, "Modality-Agnostic Refusal Steering" (arXiv 2606.31876); the
read-out, the spread, the ramp, the limit t_max and pictures judged alone are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mars_gguf.modalities import measured_as

Array = npt.NDArray[np.floating]
T = TypeVar("T", float, Array)
BUDGET = 0.05  # b: of harmless prompts that open a gate


def coordinate(h: Array, safe: Array, readout: Array) -> Array:
    """Position t of text's (or re-centred) hidden states between the centroids; dimensionless.

    ``h`` is [..., n_embd], ``safe`` (mu_s) and ``readout`` (w) are [n_embd]; the result has the
    leading shape of ``h``. t = <w, h - mu_s>, in float64.
    """
    return np.asarray(
        (np.asarray(h, np.float64) - np.asarray(safe, np.float64)) @ np.asarray(readout, np.float64)
    )


def projection(direction: Array) -> Array:
    """The plain read-out of a direction r [n_embd]: r / <r, r>, so that t is the projection on r
    in units of its length. Raises ZeroDivisionError if the direction is zero."""
    r = np.asarray(direction, np.float64)
    squared = float(r @ r)
    if squared == 0.0:
        raise ZeroDivisionError("the refusal direction is zero: both centroids coincide")
    return r / squared


def gate(z: float, ramp: float) -> float:
    """Gate s in [0, 1]: min(1, ReLU(z) / ramp), ``z`` and ``ramp`` > 0 in spreads."""
    return min(1.0, max(0.0, z / ramp))


def further(n: int) -> float:
    """f(n): how many spreads higher the threshold of each of ``n`` pictures lies that are judged
    alone, so that all together open the gate about as seldom as one; 0 for one."""
    normal = NormalDist()
    return normal.inv_cdf(1 - BUDGET / n) - normal.inv_cdf(1 - BUDGET)


def strength(t: T, s: T, distance: float, limit: float) -> T:
    """Strength alpha >= 0 for coordinates ``t`` and gates ``s``: s * D * ReLU(limit - t).

    ``distance`` is D in units of h, ``limit`` is t_max. With s <= 1 the steered coordinate
    t + alpha / D never passes the limit, and never lies below t.
    """
    return s * distance * np.maximum(limit - t, 0.0)


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==: each is itself alone
class Geometry:
    """The measurements of one block that steering needs.

    safe, unsafe: centroids mu_s and mu_u, [n_embd].
    readout: w, [n_embd].
    shifts: by modality, what it shifts a state by, delta_m [n_embd].
    spreads: by modality, that of neutral inputs, sigma_m > 0, in units of t.
    thresholds: by modality, the t_m at which the gate opens.
    gate_ramp: spreads from a gate that is shut to one that is fully open.
    trust_limit: t_max, beyond which no state is pushed.
    """

    safe: Array
    unsafe: Array
    readout: Array
    shifts: dict[str, Array]
    spreads: dict[str, float]
    thresholds: dict[str, float]
    gate_ramp: float
    trust_limit: float

    @cached_property
    def direction(self) -> Array:
        """r = mu_u - mu_s, [n_embd], not normalised."""
        return self.unsafe - self.safe

    @cached_property
    def distance(self) -> float:
        """D = ||r||, in units of the hidden state."""
        return float(np.linalg.norm(self.direction.astype(np.float64)))

    def pushing_along(self, direction: Array) -> Geometry:
        """The same read-out, gate and distance D, with the push along ``direction`` [n_embd]."""
        length = float(np.linalg.norm(np.asarray(direction, np.float64)))
        return replace(self, unsafe=self.safe + self.distance / length * direction)

    @cached_property
    def unit(self) -> Array:
        """r_hat, [n_embd], float64."""
        return self.direction.astype(np.float64) / self.distance

    def coordinate(self, h: Array, modality: str) -> float:
        """t = <w, h - delta_m - mu_s> of one hidden state ``h`` [n_embd]."""
        origin = np.add(self.safe, self.shifts[modality], dtype=np.float64)
        return float(coordinate(h, origin, self.readout))


class Decision(NamedTuple):
    """The decision on one prompt: t, z, gate s and alpha (units of h). ``isolated``: which of the
    states with one picture alone t, z and gate are of; None where they are of the whole prompt."""

    t: float
    z: float
    gate: float
    alpha: float
    isolated: int | None = None


@dataclass(frozen=True)
class Policy:
    """Says which block is judged and pushed, and how strongly. A vector file makes one; others may
    be written.

    name: as reports call it.
    block: 0-based; its output at the last prompt token is judged, and pushed along r.
    geometry: the measurements that t, the gate and the strength come from.
    gate: "measured" opens by t; "shut" never opens; "open" always does.
    strength: a fixed alpha in units of D, in place of the trust region's.
    system_prompt: the one that all was measured under; None if it was not one alone.
    """

    name: str
    block: int
    geometry: Geometry
    gate: Literal["measured", "shut", "open"] = "measured"
    strength: float | None = None
    system_prompt: str | None = None

    def decide(
        self, h: Array, modality: str, isolated: Sequence[tuple[Array, str]] = ()
    ) -> Decision:
        """Decides how strongly to push hidden state ``h`` [n_embd] of a prompt of ``modality``,
        which is judged as its fallback where it was not measured. ``isolated``: of a prompt with
        several pictures, the state and modality of the same prompt with each of them alone.

        Raises KeyError for a modality without measurements, FloatingPointError if a state is not
        finite: such a one can be neither judged nor pushed.
        """
        g, own = self.geometry, self._place(h, modality)
        (t, z), which = own, None
        for i, (its_t, its_z) in enumerate(self._place(*state) for state in isolated):
            if its_z - further(len(isolated)) > z:
                t, z, which = its_t, its_z - further(len(isolated)), i
        s = {"measured": gate(z, g.gate_ramp), "shut": 0.0, "open": 1.0}[self.gate]
        if self.strength is not None:
            return Decision(t, z, s, s * self.strength * g.distance, which)
        alpha = float(strength(own[0], s, g.distance, g.trust_limit)) if s > 0 else 0.0
        return Decision(t, z, s, alpha, which)

    def _place(self, h: Array, modality: str) -> tuple[float, float]:
        """t and z of a state."""
        g, known = self.geometry, measured_as(modality, self.geometry.spreads)
        if known is None:
            raise KeyError(modality)
        t = g.coordinate(h, known)
        if not math.isfinite(t):  # as it is if and only if h is
            raise FloatingPointError("the hidden state has NaN or infinite entries")
        return t, (t - g.thresholds[known]) / g.spreads[known]

    def push(self, alpha: float) -> npt.NDArray[np.float32]:
        """The vector that is added to h: alpha * r_hat, float32 [n_embd]."""
        return np.asarray(alpha * self.geometry.unit, np.float32)

    def caution(self, system: str | None) -> str | None:
        """The remark where the policy was measured under another system prompt than ``system``;
        None where there is nothing to say."""
        if self.system_prompt is None or self.system_prompt == (system or "").strip():
            return None
        return (
            f"the vector was measured under the system prompt {self.system_prompt[:60]!r}, and "
            f"{'another' if system else 'none'} is in use: its gate was certified for that one "
            "alone"
        )
