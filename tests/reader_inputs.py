"""What the tests of lab.reader measure, and on what."""

from __future__ import annotations

from lab.reader.rules import Rule
from mars_gguf import demo, demo_model
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.probes import paired_probes
from mars_gguf.convert.prompts import (
    ContrastPrompts,
    Prompt,
    contexts,
    read_prompts,
)
from mars_gguf.convert.splits import Split
from mars_gguf.media.images import load_image
from mars_gguf.runtime.prefill import CachedPrompt

TOKENS = 1500


BLOCK = 6


OPTIONS = Calibration(layers=(BLOCK, BLOCK), over_refusal=0.1)


AS_IT_IS = Rule("as it is", (BLOCK,), budgets=dict.fromkeys(("text", "image"), 0.1))


CONTEXTS = contexts()[:2]


class Cut(GgufExtractor):
    """Prompts end ``cut`` tokens before their ends."""

    cut = 0

    def cached(self, prompt: Prompt, number: int = 0) -> CachedPrompt:
        cached = super().cached(prompt, number)
        cached.tail = cached.tail[: len(cached.tail) - self.cut]
        return cached


def no_bar(n: int) -> None:
    """Tells nobody."""


def contrast() -> ContrastPrompts:
    sides = (read_prompts(demo_model.FOLDER / f"{side}.jsonl") for side in ("harmful", "harmless"))
    return ContrastPrompts(*sides).thinned(2)


def media() -> dict[str, Split]:
    image = paired_probes(demo_model.FOLDER / "neutral.jsonl", CONTEXTS)["image"]
    return {"image": Split(*(part[::3] for part in image))}


def requests() -> dict[tuple[str, str], list[Prompt]]:
    """Of the demo's, ten of each; what is harmless stands for what is borderline."""
    found: dict[tuple[str, str], list[Prompt]] = {}
    for asked in demo.requests():
        images = tuple(load_image(demo_model.FOLDER / "demo" / name) for name in asked.images)
        if asked.modality != "video":
            prompt = Prompt(asked.prompt, images, kind="".join(asked.images) or asked.prompt)
            found.setdefault((asked.modality, asked.kind), []).append(prompt)
    for form in ("text", "image"):
        found[form, "borderline"] = found[form, "harmless"][10:]
    return {name: prompts[:10] for name, prompts in found.items()}
