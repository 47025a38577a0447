"""Draws pictures and short videos of shapes and words, with questions that have one exact answer.
The same seed draws the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from mars_gguf.evaluate.pages import SIZE
from mars_gguf.media.drawing import SHAPES, Colour, draw_shape, font

COLOURS: dict[str, Colour] = {
    "red": (210, 30, 30),
    "green": (20, 150, 60),
    "blue": (30, 80, 220),
    "yellow": (245, 205, 20),
    "purple": (135, 45, 170),
    "black": (15, 15, 15),
}
WORDS = (
    "ANCHOR BUTTON CANDLE DRAGON EAGLE FOREST GARDEN HAMMER ISLAND JACKET KETTLE LEMON MIRROR "
    "NEEDLE OYSTER PENCIL QUILT RABBIT SADDLE TICKET UMBRELLA VIOLIN WINDOW ZEBRA"
).split()


@dataclass(frozen=True)
class Question:
    """A question about a drawing.

    answer: a number, or one lower-case word.
    draw: draws the picture, or the frames of the video.
    """

    text: str
    answer: str
    draw: Callable[[], list[Image.Image]]


Shown = list[tuple[str, str, int]] | str  # shapes (name, colour, square of a 3 x 3 grid), or a word
Asked = tuple[str, str, Shown]


def questions(seed: int, count: int, frames: int = 1) -> list[Question]:
    """Asks ``count`` questions about one picture each (``frames`` = 1) or one video of so many
    frames: how many, which colour, which word, in turn."""
    asks = (_how_many, _which_colour, _which_word)
    medium = "picture" if frames == 1 else "video"
    found = []
    for i in range(count):
        rng = np.random.default_rng([seed, frames, i])
        text, answer, shown = asks[i % len(asks)](rng, medium)
        draw = partial(_film, shown, int(rng.integers(1 << 31)), frames)
        found.append(Question(text, answer, draw))
    return found


def _how_many(rng: np.random.Generator, medium: str) -> Asked:
    shape, other = rng.permutation(SHAPES)[:2].tolist()
    count, others = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    names = [shape] * count + [other] * others
    text = f"How many {shape}s does the {medium} show? Answer with a number."
    return text, str(count), _scattered(rng, names, rng.choice(list(COLOURS), len(names)).tolist())


def _which_colour(rng: np.random.Generator, medium: str) -> Asked:
    names = rng.permutation(SHAPES)[:3].tolist()
    colours = rng.permutation(list(COLOURS))[:3].tolist()
    text = f"What colour is the {names[0]} in the {medium}? Answer with one word."
    return text, colours[0], _scattered(rng, names, colours)


def _which_word(rng: np.random.Generator, medium: str) -> Asked:
    word = str(rng.choice(WORDS))
    text = f"Which word can be read in the {medium}? Answer with that word only."
    return text, word.lower(), word


def _scattered(rng: np.random.Generator, names: list[str], colours: list[str]) -> Shown:
    squares = rng.permutation(9)[: len(names)].tolist()
    return list(zip(names, colours, squares, strict=True))


def _film(shown: Shown, seed: int, frames: int) -> list[Image.Image]:
    """Draws shapes or a word on a pale ground, in one picture or in several, as a hand-held camera
    sees them. A word stays away in the first of several."""
    rng = np.random.default_rng(seed)
    red, green, blue = rng.integers(225, 256, 3).tolist()
    pictures = []
    for i in range(frames):
        image = Image.new("RGB", (SIZE, SIZE), (red, green, blue))
        draw = ImageDraw.Draw(image)
        dx, dy = rng.integers(-12, 13, 2).tolist()
        if not isinstance(shown, str):
            for shape, colour, square in shown:
                row, column = divmod(square, 3)
                centre = SIZE * (1 + 2 * column) / 6 + dx, SIZE * (1 + 2 * row) / 6 + dy
                draw_shape(draw, shape, *centre, SIZE / 9, COLOURS[colour])
        elif i > 0 or frames == 1:
            place = (SIZE / 2 + dx, SIZE / 2 + dy)
            draw.text(place, shown, (20, 20, 20), font(64), anchor="mm")
        pictures.append(image)
    return pictures
