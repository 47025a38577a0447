"""mars-gguf: refusal steering for quantized multimodal models under llama-cpp-python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mars_gguf.runtime.llama import SteeredLlama as SteeredLlama
    from mars_gguf.runtime.llama import Steering as Steering
    from mars_gguf.vectors import Vector as Vector
    from mars_gguf.vectors import read_vector as read_vector
    from mars_gguf.vectors import write_vector as write_vector

__version__ = "0.1.0"

_HOMES = {
    "SteeredLlama": "mars_gguf.runtime.llama",
    "Steering": "mars_gguf.runtime.llama",
    "Vector": "mars_gguf.vectors",
    "read_vector": "mars_gguf.vectors",
    "write_vector": "mars_gguf.vectors",
}


def __getattr__(name: str) -> Any:
    # llama_cpp takes a moment to import: only who steers pays for it.
    if name not in _HOMES:
        raise AttributeError(f"module 'mars_gguf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
