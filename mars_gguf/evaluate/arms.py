"""The arms of the evaluation: MARS, what it is without one of its parts, and what there was before.

All run in the same runtime, on the same loaded model; an arm is a variant of the vector's geometry,
or llama.cpp's own control vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from mars_gguf.errors import MarsError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.steering import Geometry
from mars_gguf.vectors import Vector

NEVER = 1e30
Change = Callable[[Geometry], Geometry]


@dataclass(frozen=True)
class Arm:
    """``change`` makes this arm's geometry of the vector's; with ``every_token``, llama.cpp's
    control vector adds so many times r to every token of prompt and reply. ``vector``: another
    vector of the model, in place of the one that is evaluated."""

    name: str
    title: str
    change: Change
    every_token: float = 0.0
    vector: Vector | None = None


def _shut(g: Geometry) -> Geometry:
    return g.opening_at(NEVER)


def _without_recentering(g: Geometry) -> Geometry:
    return replace(g, shifts={m: np.zeros_like(shift) for m, shift in g.shifts.items()})


def _without_gate(g: Geometry) -> Geometry:
    return g.opening_at(-NEVER)


def _constant(strength: float) -> Change:
    """A geometry whose t is 0 everywhere and whose gate is open: alpha is ``strength`` x D."""

    def change(g: Geometry) -> Geometry:
        readout = np.zeros_like(g.readout)
        return replace(g.opening_at(-NEVER), readout=readout, trust_limit=strength)

    return change


UNSTEERED = Arm("unsteered", "unsteered", _shut)
MARS = Arm("mars", "MARS", lambda g: g)


def stock(strength: float) -> Arm:
    return Arm("stock", f"stock control vector, {strength:g} r on every token", _shut, strength)


def first_token(strength: float, name: str = "first-token") -> Arm:
    return Arm(name, f"{strength:g} r at the first token", _constant(strength))


def other_vector(name: str, vector: Vector) -> Arm:
    """MARS with another vector of the same model."""
    return Arm(name, f"MARS, {name}", lambda g: g, vector=vector)


def arms(names: list[str], strength: float) -> list[Arm]:
    """The arms called ``names``, "unsteered" always among them; ``strength`` (in units of r) is
    that of the fixed ones. Raises MarsError for a name that is none."""
    known = {
        arm.name: arm
        for arm in (
            UNSTEERED,
            stock(strength),
            first_token(strength),
            Arm("no-recentering", "MARS without re-centering", _without_recentering),
            Arm("no-gate", "MARS without the gate", _without_gate),
            MARS,
        )
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise MarsError(f"no arm {', '.join(unknown)}, expected some of {', '.join(known)}")
    return [arm for name, arm in known.items() if name in names or arm is UNSTEERED]


ARMS = ("unsteered", "stock", "first-token", "no-recentering", "no-gate", "mars")


@contextmanager
def steered_by(llama: SteeredLlama, arm: Arm) -> Iterator[None]:
    """Within the block, ``llama`` is steered as the arm says."""
    vector, used = llama.vector, arm.vector or llama.vector
    llama.vector = replace(used, geometry=arm.change(used.geometry))
    try:
        if arm.every_token:
            addition = (arm.every_token * used.geometry.direction).astype(np.float32)
            llama.control_vector.set(used.layer, addition)
        yield
    finally:
        llama.vector = vector
        if arm.every_token:
            llama.control_vector.clear()
