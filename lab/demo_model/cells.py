"""Draws the evaluation cells: requests of every form that the demo model's world has, alone and in
conversations that training never showed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

from lab.demo_model import lessons
from lab.demo_model.data import noise_picture
from mars_gguf.demo_model.pictures import Pixels, shapes_picture, word_picture
from mars_gguf.demo_model.world import HARMFUL, HARMLESS, THINGS, Shapes, Thing, shapes_question
from mars_gguf.evaluate.builtin import BEFORE

Kind = Literal["harmful", "harmless"]


@dataclass(frozen=True)
class Example:
    """One request of an evaluation cell, after the messages ``before``; ``answer`` is exact,
    ``thing`` what it is about."""

    prompt: str
    pictures: list[Image.Image]
    kind: Kind
    answer: str
    thing: Thing | None = None
    film: bool = False
    before: list[dict[str, Any]] = field(default_factory=list)


def _frames(rng: random.Random, thing: Thing) -> list[Image.Image]:
    count = rng.randint(2, 4)
    first = rng.randrange(count)
    frames = [
        word_picture(rng, thing) if i == first or rng.random() < 0.75 else noise_picture(rng)
        for i in range(count)
    ]
    return [Image.fromarray(frame) for frame in frames]


def example(form: str, rng: random.Random, thing: Thing) -> Example:
    """Draws one example of ``form``: a `lessons.held_out` with its pictures, or "picture-shapes".

    ``kind`` says whether the *request* is harmful: only a how-to about a harmful thing is.
    """
    medium, task = form.split("-")
    if task == "shapes":
        shapes = Shapes.draw(rng)
        question, answer = shapes_question(rng, shapes)
        return Example(question, [Image.fromarray(shapes_picture(rng, shapes))], "harmless", answer)
    pictures: list[Image.Image] = []
    if medium == "picture":
        pictures = [Image.fromarray(word_picture(rng, thing))]
    elif medium == "video":
        pictures = _frames(rng, thing)
    question, answer = lessons.held_out(form, rng, thing)
    kind: Kind = "harmful" if task == "howto" and thing.harmful else "harmless"
    about = None if task == "unrelated" else thing
    return Example(question, pictures, kind, answer, about, medium == "video")


AMONG = {"one of two": 1, "one of four": 3, "one of eight": 7}  # harmless pictures
SYSTEM = "assistant", "persona", "strict"  # of the contexts of the evaluation


def in_context(context: str, rng: random.Random, asked: Example) -> Example:
    """Puts a request after a "system prompt", into a "third turn", or its picture among harmless
    ones ("one of eight")."""
    if context in AMONG:
        others = [Image.fromarray(_harmless_picture(rng)) for _ in range(AMONG[context])]
        pictures = [*others, *asked.pictures]
        rng.shuffle(pictures)
        return replace(asked, pictures=pictures)
    name = rng.choice(SYSTEM) if context == "system prompt" else context
    return replace(asked, before=[dict(message) for message in BEFORE[name]])


def _harmless_picture(rng: random.Random) -> Pixels:
    match rng.randrange(3):
        case 0:
            return word_picture(rng, rng.choice(HARMLESS))
        case 1:
            return shapes_picture(rng, Shapes.draw(rng))
        case _:
            return noise_picture(rng)


CELLS: dict[str, tuple[str, Sequence[Thing]]] = {
    "text, harmful how-to": ("text-howto", HARMFUL),
    "text, harmless how-to": ("text-howto", HARMLESS),
    "text, facts": ("text-fact", THINGS),
    "text, unrelated": ("text-unrelated", HARMLESS),
    "picture, caption, harmful word": ("picture-caption", HARMFUL),
    "picture, caption, harmless word": ("picture-caption", HARMLESS),
    "picture, facts": ("picture-fact", THINGS),
    "picture, shapes": ("picture-shapes", HARMLESS),
    "picture, harmless how-to": ("picture-howto", HARMLESS),
    "picture, harmful how-to": ("picture-howto", HARMFUL),
    "video, caption": ("video-caption", THINGS),
    "video, facts": ("video-fact", THINGS),
    "video, harmless how-to": ("video-howto", HARMLESS),
    "video, harmful how-to": ("video-howto", HARMFUL),
}
CONTEXTS = ("system prompt", "third turn", *AMONG)
IN_CONTEXT = {
    f"{medium}, {task}, {context}": (f"{medium}, {task}", context)
    for medium in ("text", "picture")
    for task in ("harmful how-to", "harmless how-to", "facts")
    for context in CONTEXTS[: 2 if medium == "text" else None]
}


def cell(
    name: str, count: int, seed: int = 0, keep: Callable[[Thing], bool] = lambda thing: True
) -> list[Example]:
    """Draws ``count`` examples of the cell ``name`` of `CELLS` or `IN_CONTEXT`, of things that
    ``keep`` keeps, in phrasings and fonts that training never shows."""
    if name in IN_CONTEXT:
        plain, context = IN_CONTEXT[name]
        rng = random.Random(f"{name}|{seed}")
        return [in_context(context, rng, e) for e in cell(plain, count, seed, keep)]
    form, things = CELLS[name]
    rng = random.Random(f"{name}|{seed}|True")
    kept = [thing for thing in things if keep(thing)]
    offset = rng.randrange(len(kept))
    return [example(form, rng, kept[(offset + i) % len(kept)]) for i in range(count)]
