"""The layout of a vector file, its version, and the bounds of every value in it.

A vector file is a GGUF control vector (GGUF version 3, little-endian) that stock llama.cpp loads,
with the MARS geometry in its metadata:

    general.architecture     "controlvector"
    controlvector.model_hint, controlvector.layer_count = 1
    tensor direction.<l>     F32 [n_embd], r = mu_u - mu_s at block l (0-based), not normalised
    mars.version             u32, 4
    mars.sha256              string, the hash of the file (mars_gguf.vectors.seal)
    mars.layer               u32
    mars.centroid.safe, mars.centroid.unsafe, mars.shift.<modality>   f32 [n_embd]
    mars.readout             f32 [n_embd], w
    mars.spread.<modality>, mars.threshold.<modality>, mars.gate.ramp, mars.trust.limit   f32
    mars.model.*             what the vector was measured on; reasoning only of models that think
    mars.calibration.*, mars.source.*   what was measured, and with what

llama.cpp reads no keys and rejects any further tensor (common/common.cpp,
common_control_vector_load), so all else is metadata. Reading takes the file for hostile: every size
is bounded before it is allocated, every value is checked before any is used, no unknown key of ours
is passed over, nothing is executed.
"""

from __future__ import annotations

from typing import Any

from mars_gguf.errors import VectorError

VERSION = 4
OLDER = {
    1: "several still pictures are an image, too, and video means a film; and the chat template's "
    "variables are part of what is measured",
    2: "the gate has a threshold for each modality",
    3: "a vector knows the weights that it was measured with, and its own hash",
}
HASH = "mars.sha256"
KEYS = {
    "mars.version", HASH, "mars.layer", "mars.centroid.safe", "mars.centroid.unsafe",
    "mars.readout", "mars.gate.ramp", "mars.trust.limit",
}  # fmt: skip
BY_MODALITY = ("shift", "spread", "threshold")
FREE = ("calibration", "source")  # sections that may hold any key

MAX_FILE_BYTES = 64 << 20
MAX_LISTED = 4096  # values of an array of what was measured
MAX_EMBD, MAX_LAYERS = 1 << 17, 4096
# What a measurement can give, by the word after "mars.": in units of t, but where it is said.
BOUNDS = {
    "spread": (1e-6, 10.0),
    "threshold": (-10.0, 10.0),
    "gate": (1e-3, 1e3),  # the ramp, in spreads
    "trust": (0.05, 10.0),
    "shift": (-100.0, 100.0),  # along the read-out
    "readout": (0.99, 1e4),  # its length times D: 1 is the projection's
}

Value = bool | int | float | str | list[Any]


def expect(good: bool, key: str, found: object, expected: str) -> None:
    """Raises VectorError, naming the key, what was found and what was expected, unless ``good``."""
    if not good:
        raise VectorError(
            f"{key}: found {found!s:.200}, expected {expected}. Convert the model again."
        )
