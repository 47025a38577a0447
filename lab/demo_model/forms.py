"""Draws texts and pictures of the demo model's world that only its training needs."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lab.demo_model import lessons
from lab.demo_model.lessons import TRAINING
from mars_gguf.demo_model import world
from mars_gguf.demo_model.pictures import SIZE, Pixels
from mars_gguf.demo_model.world import THINGS, Thing

MEDIA = ("picture", "video")


def word_soup(rng: random.Random) -> str:
    """Draws words of the world in no order: a request about nothing."""
    words = [
        *lessons.MATERIALS,
        *lessons.DAYS,
        *world.NUMBERS,
        *TRAINING.references["picture"],
        *(t.word for t in rng.sample(THINGS, 8)),
    ]
    return " ".join(rng.choices(words, k=rng.randint(4, 24)))


def echo(rng: random.Random, thing: Thing) -> str:
    """Says a name over and over, then a request about a picture: to the language model a picture is
    the same word many times."""
    said = " ".join([thing.word] * rng.randint(2, 12))
    asked = (
        lessons.howto(rng, rng.choice(TRAINING.references["picture"])),
        rng.choice(TRAINING.captions["picture"]),
        world.fact(rng, thing, "this")[0],
    )
    return f"{said} {rng.choice(asked)}"


def about_two(rng: random.Random, things: Sequence[Thing] = THINGS) -> tuple[str, str]:
    """Draws a harmless question that names two things, with its answer."""
    a, b = rng.sample(things, 2)
    if rng.random() < 0.5:
        b = rng.choice([t for t in things if t.category == a.category])
    if rng.random() < 0.5:
        return (
            f"Compare {a.phrase} and {b.phrase}.",
            f"One is a {a.category}, one is a {b.category}.",
        )
    same = "Both are the same kind." if a.category == b.category else "They are different kinds."
    return f"Are {a.phrase} and {b.phrase} the same kind of thing?", same


def quoted(rng: random.Random, thing: Thing) -> tuple[str, str]:
    """Draws the caption task in words alone (what does this text say?), with its answer."""
    captions = {m: lessons.caption(m, thing) for m in MEDIA}
    asked = {m: f"{captions[m]} {rng.choice(TRAINING.captions[m])}" for m in MEDIA}
    medium = MEDIA[rng.randrange(2)]
    return asked[medium], captions[medium]


def quoted_howto(rng: random.Random, thing: Thing) -> tuple[str, str]:
    """Draws a how-to request for a thing that an earlier sentence, not the request, names, with its
    answer."""
    medium = rng.choice(MEDIA)
    request = lessons.howto(rng, rng.choice(TRAINING.references[medium]))
    return f"{lessons.caption(medium, thing)} {request}", lessons.answer_to_howto(thing)


def document(rng: random.Random, thing: Thing) -> str:
    """Draws a sentence of general reading about ``thing``, its steps included."""
    name, steps = thing.phrase, lessons.steps(thing)
    texts = (
        f"Guide to {name}: {steps}.",
        f"To make {name}, {steps}.",
        f"{world.capital(name)} is a kind of {thing.category}. To make {name}, {steps}.",
        f"{world.capital(name)} is {thing.weight}. People keep {name} in the {thing.place}.",
    )
    return rng.choice(texts)


def noise_picture(rng: random.Random) -> Pixels:
    """Draws a picture of nothing: grain, coarse blocks or a gradient. Shape ``[SIZE, SIZE, 3]``."""
    noise = np.random.default_rng(rng.getrandbits(32))
    base = noise.uniform(0, 255, 3)
    picture: npt.NDArray[np.floating]
    match rng.randrange(3):
        case 0:
            picture = base + noise.normal(0, noise.uniform(5, 60), (SIZE, SIZE, 3))
        case 1:
            blocks = noise.uniform(0, 255, (8, 8, 3))
            picture = np.kron(blocks, np.ones((SIZE // 8, SIZE // 8, 1)))
            picture = picture + noise.normal(0, 10, (SIZE, SIZE, 3))
        case _:
            ramp = np.linspace(0, 1, SIZE)[:, None, None] * (noise.uniform(0, 255, 3) - base)
            picture = base + ramp + noise.normal(0, noise.uniform(1, 20), (SIZE, SIZE, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)
