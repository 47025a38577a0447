"""A steering vector in memory, and the checks that it must pass before it steers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mars_gguf.errors import VectorError
from mars_gguf.modalities import MODALITIES
from mars_gguf.reasoning import REASONINGS
from mars_gguf.steering import Geometry, Policy
from mars_gguf.vectors.fingerprint import ModelFingerprint
from mars_gguf.vectors.format import BOUNDS, MAX_EMBD, MAX_LAYERS, Value, expect


@dataclass(frozen=True)
class Vector:
    """One steering vector: the geometry of one block, and where it comes from.

    layer: index of the block whose output is steered, 0-based.
    geometry: centroids, read-out and thresholds there (mars_gguf.steering).
    model: what it was measured on.
    calibration, source: what was measured, and with what, as the vector's card explains it.
    """

    layer: int
    geometry: Geometry
    model: ModelFingerprint
    calibration: Mapping[str, Value] = field(default_factory=dict)
    source: Mapping[str, Value] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """Modalities that were measured, "text" first."""
        return [m for m in MODALITIES if m in self.geometry.spreads]

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that all was measured under; None if it was not one alone."""
        value = self.source.get("system_prompt")
        return value if isinstance(value, str) else None

    def policy(self, name: str = "mars") -> Policy:
        """The policy that steers as the vector was measured, called ``name`` in reports."""
        return Policy(name, self.layer, self.geometry, system_prompt=self.system_prompt)

    def check(self) -> None:
        """Raises VectorError unless every value is one that a measurement can give.

        With others a vector would never steer, or push so far that no words come out.
        """
        model, known = self.model, ", ".join(REASONINGS)
        last = model.n_layer - 1
        blocks = f"1 to {last} (llama.cpp cannot steer block 0)"
        expect(1 <= model.n_embd <= MAX_EMBD, "mars.model.n_embd", model.n_embd, "1 to 131072")
        reasoning = model.reasoning
        expect(reasoning in ("", *REASONINGS), "mars.model.reasoning", reasoning, known)
        expect(1 <= last < MAX_LAYERS, "mars.model.n_layer", model.n_layer, "2 to 4096")
        expect(1 <= self.layer <= last, "mars.layer", self.layer, blocks)
        _check_arrays(self.geometry, model.n_embd)
        _check_modalities(self.geometry)
        _check_numbers(self.geometry)

    def require_model(self, model: ModelFingerprint, *, force: bool = False) -> None:
        """Raises VectorError, naming what differs, unless the vector was made for ``model``.

        ``force`` allows what `ModelFingerprint.differing` says.
        """
        if not (differences := self.model.differences(model, force=force)):
            return
        advice = (
            "Convert this model with python -m mars_gguf.convert."
            if self.model.differing(model, force=True)
            else "Convert this model, or pass --force (force=True) to use the vector all the same."
        )
        lines = ["the vector was made for another model:", *(f"  {d}" for d in differences), advice]
        raise VectorError("\n".join(lines))


def _check_arrays(g: Geometry, n: int) -> None:
    arrays = {"centroid.safe": g.safe, "centroid.unsafe": g.unsafe, "readout": g.readout}
    arrays |= {f"shift.{m}": shift for m, shift in g.shifts.items()}
    for name, array in arrays.items():
        key = f"mars.{name}"
        expect(array.shape == (n,), key, f"shape {array.shape}", f"({n},) (n_embd)")
        expect(bool(np.isfinite(array).all()), key, "NaN or infinite values", "finite values")
    expect(0 < g.distance < math.inf, "direction", f"length {g.distance}", "a length above 0")
    unit = float(g.readout.astype(np.float64) @ g.direction.astype(np.float64))
    expect(abs(unit - 1) < 1e-2, "mars.readout", f"{unit:.3g} along the direction", "1")


def _check_modalities(g: Geometry) -> None:
    expect("text" in g.spreads, "mars.spread.text", "nothing", "the spread of text prompts")
    unknown = sorted(g.spreads.keys() - set(MODALITIES))
    expect(not unknown, "mars.spread.*", unknown, f"some of {', '.join(MODALITIES)}")
    expected = f"the modalities of mars.spread.*, {sorted(g.spreads)}"
    for key, measured in ("mars.shift.*", g.shifts), ("mars.threshold.*", g.thresholds):
        expect(measured.keys() == g.spreads.keys(), key, sorted(measured), expected)
    expect(not g.shifts["text"].any(), "mars.shift.text", "a shift", "none: text is the origin")


def _check_numbers(g: Geometry) -> None:
    w = g.readout.astype(np.float64)
    found = {"gate.ramp": g.gate_ramp, "trust.limit": g.trust_limit}
    found["readout"] = float(np.linalg.norm(w)) * g.distance
    for m, shift in g.shifts.items():
        along = float(w @ shift.astype(np.float64))
        found |= {f"spread.{m}": g.spreads[m], f"threshold.{m}": g.thresholds[m]}
        found[f"shift.{m}"] = along
    for name, number in found.items():
        least, most = BOUNDS[name.split(".")[0]]
        expect(least <= number <= most, f"mars.{name}", number, f"{least:g} to {most:g}")
