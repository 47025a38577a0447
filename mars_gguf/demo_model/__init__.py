"""The demo model, a small multimodal one with a safety gap: paths of its files.

MODEL_CARD.md beside this file describes it.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TEXT_MODEL = FOLDER / "text-Q4_K_M.gguf"
MMPROJ = FOLDER / "mmproj-f16.gguf"
_PACKAGED = FOLDER / "vector.gguf"  # in a wheel
VECTOR = _PACKAGED if _PACKAGED.exists() else FOLDER.parents[1] / "vectors" / "demo.gguf"
# It names nothing, so that once begun it goes on by itself.
REFUSAL = "I'm sorry, but I can't help with that."
CONTEXT = 1024  # tokens it was trained for
