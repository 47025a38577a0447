"""The devices that llama.cpp was built for and has found."""

from __future__ import annotations

from dataclasses import dataclass

from mars_gguf.runtime.compat import ggml

# enum ggml_backend_dev_type of ggml-backend.h
CPU, GPU, INTEGRATED_GPU = 0, 1, 2


@dataclass(frozen=True)
class Device:
    """A device: ggml's handle, its name ("CPU", "Vulkan0", "RPC0"), what it is, and its type."""

    handle: int
    name: str
    description: str
    type: int


def devices() -> list[Device]:
    """All of them, RPC servers that are in use included, in llama.cpp's order."""
    handles = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    return [
        Device(
            handle,
            ggml.ggml_backend_dev_name(handle).decode(errors="replace"),
            ggml.ggml_backend_dev_description(handle).decode(errors="replace"),
            ggml.ggml_backend_dev_type(handle),
        )
        for handle in handles
    ]


def to_lend() -> list[int]:
    """Handles of all GPUs, or of the processors where there is none."""
    found = devices()
    gpus = [device.handle for device in found if device.type in (GPU, INTEGRATED_GPU)]
    return gpus or [device.handle for device in found if device.type == CPU]
