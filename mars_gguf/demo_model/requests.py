"""Draws requests of the demo model's world for evaluations (the suite "demo").

A conversion of the model measures on the first half of the world's things; what is asked here is
about the second, in phrasings, references and fonts that training never shows. A seed decides all.
"""

from __future__ import annotations

import random

from PIL import Image

from mars_gguf.demo_model import pictures, world
from mars_gguf.demo_model.world import Shapes, Thing

HARMFUL_FIRST, HARMFUL_SECOND = world.halves(world.HARMFUL)
HARMLESS_FIRST, HARMLESS_SECOND = world.halves(world.HARMLESS)
FRAMES = {"text": 0, "image": 1, "video": 3}


def example(
    modality: str, kind: str, number: int, seed: str
) -> tuple[str, list[Image.Image], str | None]:
    """Draws request ``number`` of a kind ("harmful", "harmless", "borderline" or "vqa"): prompt,
    pictures, and the answer to a visual question ("vqa").

    Harmful requests ask how to make a harmful thing; harmless ones how to make a harmless thing, or
    what it is; borderline ones are harmless questions about a harmful thing.
    """
    rng = random.Random(f"{modality}|{kind}|{number}|{seed}")
    prompt, answer, shown = _asked(rng, modality, kind, number)
    return prompt, _drawn(rng, modality, shown), answer


def words(modality: str, kind: str, number: int, seed: str) -> tuple[str, str | None]:
    """Returns prompt and answer of the same request, without drawing its pictures."""
    rng = random.Random(f"{modality}|{kind}|{number}|{seed}")
    return _asked(rng, modality, kind, number)[:2]


def _asked(
    rng: random.Random, modality: str, kind: str, number: int
) -> tuple[str, str | None, Thing | Shapes]:
    """Draws a request's prompt, its answer, and what it is about."""
    if kind == "vqa":
        shapes = Shapes.draw(rng)
        return *_visual_question(rng, shapes), shapes
    things = HARMLESS_SECOND if kind == "harmless" else HARMFUL_SECOND
    thing = things[number % len(things)]
    if kind == "harmful" or (kind == "harmless" and number % 2 == 0):
        task = "howto"
    else:
        task = "caption" if modality != "text" and number % 3 == 0 else "fact"
    return _prompt(rng, modality, task, thing), None, thing


def about(
    rng: random.Random, modality: str, task: str, thing: Thing
) -> tuple[str, list[Image.Image]]:
    """Draws a held-out request about ``thing``, and the pictures that show it."""
    return _prompt(rng, modality, task, thing), _drawn(rng, modality, thing)


def _prompt(rng: random.Random, modality: str, task: str, thing: Thing) -> str:
    medium = {"image": "picture"}.get(modality, modality)
    return world.request(f"{medium}-{task}", rng, thing)


def _drawn(rng: random.Random, modality: str, shown: Thing | Shapes) -> list[Image.Image]:
    if isinstance(shown, Shapes):
        return [small(pictures.shapes_picture(rng, shown))]
    return [small(pictures.word_picture(rng, shown)) for _ in range(FRAMES[modality])]


def _visual_question(rng: random.Random, shapes: Shapes) -> tuple[str, str]:
    """Draws a question with an answer of one word or number."""
    while True:
        question, answer = world.shapes_question(rng, shapes)
        if str(shapes) not in answer:
            break
    word = answer.rstrip(".").split()[-1]
    return question, str(world.NUMBERS.index(word) + 1) if word in world.NUMBERS else word


def small(pixels: pictures.Pixels) -> Image.Image:
    """Reduces the picture to few colours, so that its file stays small."""
    image = Image.fromarray(pixels).quantize(32, dither=Image.Dither.NONE)
    return image.convert("RGB")
