"""The converter: measures a model's refusal geometry and writes it as a vector file.

For code:

    convert            measures a model: convert("model.gguf", "mmproj.gguf").write("vector.gguf")
    Conversion         what it returns: the vector, warnings, and `write`
    Prompts, Calibration, GgufOptions, CheckpointOptions      its choices, in groups
    read_artefact      reads a direction that was measured elsewhere
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mars_gguf.convert.artefacts import read_artefact
    from mars_gguf.convert.choices import Calibration, CheckpointOptions, GgufOptions, Prompts
    from mars_gguf.convert.conversion import Conversion, convert

__all__ = [
    "Calibration", "CheckpointOptions", "Conversion", "GgufOptions", "Prompts", "convert",
    "read_artefact",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Commands that need one module of this room do not wait for all of them.
    if name not in __all__:
        raise AttributeError(f"module 'mars_gguf.convert' has no attribute {name!r}")
    from mars_gguf.convert import artefacts, choices, conversion

    return next(vars(m)[name] for m in (conversion, choices, artefacts) if name in vars(m))
