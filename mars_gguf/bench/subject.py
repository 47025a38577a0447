"""What is measured: a model with its vector, how it is run, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mars_gguf import demo_model
from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.probes import neutral_probes, paired_probes
from mars_gguf.convert.prompts import ContrastPrompts, Prompt, builtin_contrast, read_prompts

# Of SteeredLlama's options. (RPC servers are made known to the process: plain models use them too.)
STEERED_ONLY = {"template", "chat_template_kwargs", "reasoning", "way", "force", "rpc_servers"}
READING = {
    "template": "chat_handler",
    "chat_template_kwargs": "chat_template_kwargs",
    "reasoning": "reasoning",
    "n_threads": "n_threads",
    "n_gpu_layers": "n_gpu_layers",
    "rpc_servers": "rpc_servers",
}  # SteeredLlama's names, and GgufExtractor's


@dataclass(frozen=True)
class Material:
    """The prompts that are measured: contrast prompts, neutral ones with pictures, and what makes
    the converter use the same."""

    contrast: ContrastPrompts
    neutral: list[Prompt] = field(default_factory=list)
    prompts: Prompts = field(default_factory=Prompts)


@dataclass(frozen=True)
class Subject:
    """Files, material, and ``options``: those of SteeredLlama (mars_gguf.options.llama_options)."""

    model: str
    mmproj: str | None
    vector: str
    given: Material
    options: dict[str, Any]

    @property
    def plain(self) -> dict[str, Any]:
        """The same options for ``llama_cpp.Llama``."""
        return {name: value for name, value in self.options.items() if name not in STEERED_ONLY}

    @property
    def reading(self) -> dict[str, Any]:
        """The same options for GgufExtractor."""
        return {READING[name]: value for name, value in self.options.items() if name in READING}


def material(demo: bool, images: bool) -> Material:
    """The demo model's own, or what the converter has built in."""
    if not demo:
        parts = neutral_probes(32, 224, 0)["image"] if images else ()
        return Material(builtin_contrast(), [prompt for part in parts for prompt in part])
    harmful, harmless, neutral_media = (
        str(demo_model.FOLDER / f"{name}.jsonl") for name in ("harmful", "harmless", "neutral")
    )
    return Material(
        ContrastPrompts(read_prompts(harmful), read_prompts(harmless)),
        [prompt for part in paired_probes(neutral_media)["image"] for prompt in part],
        Prompts(
            harmful=harmful, harmless=harmless, neutral_media=neutral_media if images else None
        ),
    )
