"""The subject of the measurements: a model with its vector, how it is run, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lab.bench.figures import Figure
from mars_gguf import demo_model
from mars_gguf.convert.choices import Prompts
from mars_gguf.convert.prompt_sets import PromptSets, gather
from mars_gguf.convert.prompts import Prompt

# Of SteeredLlama's options. (RPC servers are made known to the process: plain models use them too.)
STEERED_ONLY = {"template", "chat_template_kwargs", "reasoning", "way", "force", "rpc_servers"}
PICTURES = 16
READING = {
    "template": "chat_handler",
    "chat_template_kwargs": "chat_template_kwargs",
    "reasoning": "reasoning",
    "n_threads": "n_threads",
    "n_gpu_layers": "n_gpu_layers",
    "rpc_servers": "rpc_servers",
}  # SteeredLlama's names, and GgufExtractor's


@dataclass(frozen=True)
class Asked:
    """The figures that are asked for, by name, and how often each run is repeated. ``started`` is
    told what is measured next."""

    only: Collection[str]
    repetitions: int = 15
    started: Callable[[str], object] = lambda name: None

    def figures(self, names: Collection[str]) -> Iterator[Figure]:
        """The figures of ``names`` that are asked for, still to be measured, one after another."""
        for name in names:
            if name in self.only:
                self.started(name)
                yield Figure.named(name)


@dataclass(frozen=True)
class Subject:
    """A model, how it runs, and what it is converted with. ``options``: those of SteeredLlama, as
    mars_gguf.options.llama_options makes them."""

    model: str
    mmproj: str | None
    vector: str
    options: dict[str, Any]
    prompts: Prompts = field(default_factory=Prompts)

    @cached_property
    def sets(self) -> PromptSets:
        """The prompts of a conversion, with a third of its pictures."""
        few = replace(self.prompts, probes=32, contexts=False)
        return gather(few, 0, sees=self.mmproj is not None)

    def text_prompts(self) -> list[Prompt]:
        """Harmful and harmless prompts in turn."""
        contrast = self.sets.contrast
        pairs = zip(contrast.harmful, contrast.harmless, strict=False)
        return [Prompt(text) for pair in pairs for text in pair]

    def picture_prompts(self) -> list[Prompt]:
        """Neutral prompts with one picture each, no picture twice: PICTURES at most."""
        neutral = [prompt for part in self.sets.media["image"] for prompt in part]
        distinct = {p.images[0].tobytes(): p for p in neutral if len(p.images) == 1}
        return list(distinct.values())[:PICTURES]

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
