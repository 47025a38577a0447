"""What the tests of lab.reader ask the demo model, and how large their projector is."""

from __future__ import annotations

from mars_gguf import demo, demo_model
from mars_gguf.convert.prompts import Prompt
from mars_gguf.media.images import load_image

TOKENS = 1500


def no_bar(n: int) -> None:
    """Tells nobody."""


def requests() -> dict[tuple[str, str], list[Prompt]]:
    """Of the demo's, ten of each."""
    found: dict[tuple[str, str], list[Prompt]] = {}
    for asked in demo.requests():
        images = tuple(load_image(demo_model.FOLDER / "demo" / name) for name in asked.images)
        if asked.modality != "video":
            prompt = Prompt(asked.prompt, images, kind="".join(asked.images) or asked.prompt)
            found.setdefault((asked.modality, asked.kind), []).append(prompt)
    return {name: prompts[:10] for name, prompts in found.items()}
