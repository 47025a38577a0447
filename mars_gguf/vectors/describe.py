"""Describes a vector in words."""

from __future__ import annotations

import numpy as np

from mars_gguf.console import printable
from mars_gguf.vectors.vector import Vector


def describe(vector: Vector) -> str:
    """Describes what a vector holds, in lines of text for a person."""
    g, m = vector.geometry, vector.model
    lines = [
        f"model       {m.name or m.architecture} ({m.architecture}, {m.n_layer} blocks, "
        f"n_embd {m.n_embd}, {m.quantization or 'quantization unknown'})",
        *[f"reasoning   {m.reasoning}"] * bool(m.reasoning),
        f"layer       {vector.layer}",
        f"direction   D = {g.distance:.4g}",
        f"gate        fully open {g.gate_ramp:.3g} spreads beyond where it opens",
        f"trust limit t = {g.trust_limit:.3g}",
    ]
    for modality in vector.modalities:
        shift = float(np.linalg.norm(g.shifts[modality].astype(np.float64))) / g.distance
        lines.append(
            f"{modality:11} spread {g.spreads[modality]:.3g}, shift {shift:.3g} D, gate opens at "
            f"t = {g.thresholds[modality]:.3g}"
        )
    for title, section in (("calibration", vector.calibration), ("source", vector.source)):
        for key, value in section.items():
            text = f"{len(value)} values" if isinstance(value, list) else str(value)
            lines.append(f"{title:11} {key} = {text}")
    return "\n".join(map(printable, lines))
