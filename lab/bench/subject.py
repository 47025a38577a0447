"""The subject of the measurements: a model with its vector, how it is run, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from PIL import Image

from mars_gguf import demo_model
from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.prompt_sets import PromptSets, gather

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
class Subject:
    """A model, how it runs, how often each run is repeated, and what it is converted with.
    ``options``: those of SteeredLlama, as mars_gguf.options.llama_options makes them."""

    model: str
    mmproj: str | None
    vector: str
    options: dict[str, Any]
    repetitions: int = 15
    prompts: Prompts = field(default_factory=Prompts)

    @cached_property
    def sets(self) -> PromptSets:
        """The prompts of a conversion, with a third of its pictures."""
        few = replace(self.prompts, probes=32, contexts=False)
        return gather(few, 0, sees=self.mmproj is not None)

    def pictures(self, n: int) -> list[Image.Image]:
        """The first ``n`` neutral pictures, none twice."""
        neutral = [p.images[0] for part in self.sets.media["image"] for p in part]
        return list({picture.tobytes(): picture for picture in neutral}.values())[:n]

    @property
    def plain(self) -> dict[str, Any]:
        """The same options for ``llama_cpp.Llama``."""
        return {name: value for name, value in self.options.items() if name not in STEERED_ONLY}

    @property
    def reading(self) -> dict[str, Any]:
        """The same options for GgufExtractor."""
        return {READING[name]: value for name, value in self.options.items() if name in READING}


def demo_prompts(*, sees: bool) -> Prompts:
    """The choice of prompts that the demo model's own vector was measured with."""
    harmful, harmless, media = (
        demo_model.FOLDER / f"{name}.jsonl" for name in ("harmful", "harmless", "neutral")
    )
    return Prompts(harmful, harmless, neutral_media=media if sees else None, own_wordings=sees)
