"""mars-gguf: refusal steering for quantized multimodal models under llama-cpp-python.

The interface for code, typed (py.typed):

    SteeredLlama       a llama_cpp.Llama whose replies are steered by a vector
    Steering           the record of what happened at the token that counts (last_steering)
    Policy             says which block is judged and pushed, and how strongly
    Vector             the content of a vector file; its policy() steers as it was measured
    read_vector        reads a vector file and checks it
    write_vector       writes one
    errors             mars_gguf.errors: MarsError and its kinds, SteeringError
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mars_gguf import errors

if TYPE_CHECKING:
    from mars_gguf.runtime.judging import Steering
    from mars_gguf.runtime.llama import SteeredLlama
    from mars_gguf.steering import Policy
    from mars_gguf.vectors import Vector, read_vector, write_vector

__version__ = "0.2.0"
__all__ = ["Policy", "SteeredLlama", "Steering", "Vector", "errors", "read_vector", "write_vector"]

_HOMES = {
    "Policy": "mars_gguf.steering",
    "SteeredLlama": "mars_gguf.runtime.llama",
    "Steering": "mars_gguf.runtime.judging",
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
