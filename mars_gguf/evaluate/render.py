"""Requests written in pictures and short videos, and pictures with exactly answerable questions.

All are a function of their arguments: the same seed draws the same pictures, another seed another
layout. Only the font that Pillow ships is used.

``python -m mars_gguf.evaluate.render -o DIR`` writes a suite's pictures and a ``suite.jsonl`` that
``load_suite("jsonl:DIR/suite.jsonl")`` reads, to look at or to use with other tools.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mars_gguf.console import command
from mars_gguf.errors import MarsError
from mars_gguf.options import seed

SIZE = 448
FRAMES = 4
LARGEST_FONT, SMALLEST_FONT = 60, 14  # pixels

Colour = tuple[int, int, int]

# (paper, ink), each pair of strong contrast
PALETTES: tuple[tuple[Colour, Colour], ...] = (
    ((255, 255, 255), (0, 0, 0)),
    ((0, 0, 0), (255, 255, 255)),
    ((250, 245, 225), (30, 30, 80)),
    ((25, 40, 80), (250, 240, 200)),
    ((220, 235, 250), (120, 10, 30)),
    ((40, 90, 60), (255, 255, 255)),
    ((255, 225, 120), (40, 20, 60)),
    ((235, 235, 235), (0, 70, 110)),
)
COLOURS: dict[str, Colour] = {
    "red": (210, 30, 30),
    "green": (20, 150, 60),
    "blue": (30, 80, 220),
    "yellow": (245, 205, 20),
    "purple": (135, 45, 170),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star")
WORDS = (
    "ANCHOR BUTTON CANDLE DRAGON EAGLE FOREST GARDEN HAMMER ISLAND JACKET KETTLE LEMON MIRROR "
    "NEEDLE OYSTER PENCIL QUILT RABBIT SADDLE TICKET UMBRELLA VIOLIN WINDOW ZEBRA"
).split()


# Typography


@dataclass(frozen=True)
class _Page:
    """Lines of text, their place on a page and its colours."""

    lines: list[str]
    font: int
    corner: tuple[float, float]
    palette: tuple[Colour, Colour]
    size: tuple[int, int]

    def draw(self, lines: int | None = None) -> Image.Image:
        """The page with its first `lines` lines, or all."""
        paper, ink = self.palette
        image = Image.new("RGB", self.size, paper)
        text = "\n".join(self.lines[:lines])
        ImageDraw.Draw(image).multiline_text(self.corner, text, ink, _font(self.font))
        return image


def typographic_image(text: str, seed: int, size: int = SIZE) -> Image.Image:
    """`text` written in a picture of `size` x `size` pixels: wrapped, as large as fits.

    Raises MarsError if there is no text, or so much that it could not be read.
    """
    return _page(text, seed, size, size).draw()


def typographic_video(
    text: str, seed: int, frames: int = FRAMES, size: int = SIZE
) -> list[Image.Image]:
    """`text` in `frames` pictures of `size` x `size` pixels, in one of three ways (by seed).

    Lines appear one after another; a few words are shown at a time; or a camera moves down a page
    that is higher than one picture. Every word can be read in at least one frame.

    Raises MarsError as `typographic_image` does, or if `frames` is less than 2.
    """
    if frames < 2:
        raise MarsError(f"frames of a video: found {frames}, expected at least 2")
    steps = np.linspace(0, 1, frames + 1)
    match np.random.default_rng([seed, 1]).integers(3):
        case 0:
            page = _page(text, seed, size, size)
            return [page.draw(round(len(page.lines) * step)) for step in steps[1:].tolist()]
        case 1:
            words = text.split()
            ends = np.ceil(len(words) * steps).astype(int).tolist()
            parts = [" ".join(words[a:b]) for a, b in pairwise(ends)]
            return [typographic_image(part or text, seed, size) for part in parts]
        case _:
            height = size * 3 // 2
            image = _page(text, seed, size, height).draw()
            tops = np.linspace(0, height - size, frames).round().astype(int).tolist()
            return [image.crop((0, top, size, top + size)) for top in tops]


def _page(text: str, seed: int, width: int, height: int) -> _Page:
    rng = np.random.default_rng([seed, 0])
    margin = width * 0.05
    room = ((width - 2 * margin) * rng.uniform(0.8, 1), (height - 2 * margin) * rng.uniform(0.7, 1))
    lines, font = _fit(text, *room)
    right, bottom = _extent(lines, font)
    corner = (
        rng.uniform(margin, width - margin - right),
        rng.uniform(margin, height - margin - bottom),
    )
    return _Page(lines, font, corner, PALETTES[rng.integers(len(PALETTES))], (width, height))


def _fit(text: str, width: float, height: float) -> tuple[list[str], int]:
    """The text in lines, and the largest font with which they fit `width` x `height`."""
    words = text.split()
    if not words:
        raise MarsError("no text to write in a picture")
    for font in range(LARGEST_FONT, SMALLEST_FONT - 1, -2):
        lines: list[str] = []
        for word in words:
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and _extent([longer], font)[0] <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        right, bottom = _extent(lines, font)
        if right <= width and bottom <= height:
            return lines, font
    raise MarsError(
        f"text too long to be read in one picture: found {len(text)} characters "
        f"({text:.30} ...); shorten it"
    )


def _extent(lines: list[str], font: int) -> tuple[float, float]:
    """How far the lines reach to the right and down, in pixels."""
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = measure.multiline_textbbox((0, 0), "\n".join(lines), _font(font))
    return right, bottom


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


# Visual questions


@dataclass(frozen=True)
class Question:
    """A question about a drawing, its exact answer (a number, or one lower-case word), and what
    draws the picture, or the frames of a video, when called."""

    text: str
    answer: str
    draw: Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class _Scene:
    """Shapes (name, colour, cell of a 3 x 3 grid) or a word on a pale ground."""

    seed: int
    shapes: tuple[tuple[str, str, int], ...] = ()
    word: str = ""


def questions(seed: int, count: int, frames: int = 1) -> list[Question]:
    """`count` questions about one picture each (`frames` = 1) or one video of `frames` pictures:
    how many, which colour, which shape, which word, left or right, in turn."""
    asks = (_how_many, _which_colour, _which_shape, _which_word, _which_side)
    medium = "picture" if frames == 1 else "video"
    found = []
    for i in range(count):
        rng = np.random.default_rng([seed, frames, i])
        text, answer, scene = asks[i % len(asks)](rng, medium)
        found.append(Question(text, answer, partial(_film, scene, frames)))
    return found


Asked = tuple[str, str, _Scene]


def _how_many(rng: np.random.Generator, medium: str) -> Asked:
    shape, other = rng.permutation(SHAPES)[:2].tolist()
    count, others = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    names = [shape] * count + [other] * others
    text = f"How many {shape}s does the {medium} show? Answer with a number."
    return text, str(count), _scene(rng, names, rng.choice(list(COLOURS), len(names)).tolist())


def _which_colour(rng: np.random.Generator, medium: str) -> Asked:
    names, colours = _distinct(rng)
    text = f"What colour is the {names[0]} in the {medium}? Answer with one word."
    return text, colours[0], _scene(rng, names, colours)


def _which_shape(rng: np.random.Generator, medium: str) -> Asked:
    names, colours = _distinct(rng)
    text = (
        f"Which shape in the {medium} is {colours[0]}: the circle, the square, the triangle or the "
        "star? Answer with one word."
    )
    return text, names[0], _scene(rng, names, colours)


def _which_word(rng: np.random.Generator, medium: str) -> Asked:
    word = str(rng.choice(WORDS))
    text = f"Which word can be read in the {medium}? Answer with that word only."
    return text, word.lower(), _Scene(int(rng.integers(1 << 31)), word=word)


def _which_side(rng: np.random.Generator, medium: str) -> Asked:
    names, colours = _distinct(rng)
    row = int(rng.integers(3)) * 3
    first, second = rng.permutation([0, 2]).tolist()
    shapes = ((names[0], colours[0], row + first), (names[1], colours[1], row + second))
    text = (
        f"In the {medium}, is the {names[0]} to the left or to the right of the {names[1]}? "
        "Answer with one word."
    )
    return text, "left" if first < second else "right", _Scene(int(rng.integers(1 << 31)), shapes)


def _distinct(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Three different shapes in three different colours."""
    return rng.permutation(SHAPES)[:3].tolist(), rng.permutation(list(COLOURS))[:3].tolist()


def _scene(rng: np.random.Generator, names: list[str], colours: list[str]) -> _Scene:
    cells = rng.permutation(9)[: len(names)].tolist()
    return _Scene(int(rng.integers(1 << 31)), tuple(zip(names, colours, cells, strict=True)))


def _film(scene: _Scene, frames: int) -> list[Image.Image]:
    """The scene in one picture, or in several, as a hand-held camera sees it. A word stays away in
    the first of several."""
    rng = np.random.default_rng(scene.seed)
    red, green, blue = rng.integers(225, 256, 3).tolist()
    pictures = []
    for i in range(frames):
        image = Image.new("RGB", (SIZE, SIZE), (red, green, blue))
        draw = ImageDraw.Draw(image)
        dx, dy = rng.integers(-12, 13, 2).tolist()
        for shape, colour, cell in scene.shapes:
            centre = (SIZE * (1 + 2 * (cell % 3)) / 6 + dx, SIZE * (1 + 2 * (cell // 3)) / 6 + dy)
            _draw_shape(draw, shape, COLOURS[colour], *centre, SIZE / 9)
        if scene.word and (i > 0 or frames == 1):
            place = (SIZE / 2 + dx, SIZE / 2 + dy)
            draw.text(place, scene.word, (20, 20, 20), _font(64), anchor="mm")
        pictures.append(image)
    return pictures


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, fill: Colour, x: float, y: float, radius: float
) -> None:
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
    elif shape == "square":
        side = radius * 0.88
        draw.rectangle((x - side, y - side, x + side, y + side), fill)
    else:
        points, inner = (3, 0.5) if shape == "triangle" else (5, 0.4)
        angles = np.pi * (np.arange(2 * points) / points - 0.5)
        radii = np.where(np.arange(2 * points) % 2, inner, 1) * radius
        xs, ys = x + radii * np.cos(angles), y + radii * np.sin(angles)
        draw.polygon(list(zip(xs.tolist(), ys.tolist(), strict=True)), fill)


# Writing a suite's pictures


def write_suite(name_or_path: str, folder: Path, seed: int = 0) -> Path:
    """Write the pictures of a suite as PNG files under `folder`/media, one a frame, and its cases
    as `folder`/suite.jsonl, the file that is returned."""
    from mars_gguf.evaluate.suites import load_suite

    suite = load_suite(name_or_path, seed=seed)
    (folder / "media").mkdir(parents=True, exist_ok=True)

    def lines() -> Iterator[dict[str, Any]]:
        for number, case in enumerate(suite.cases):
            stem = f"{number:05}-{re.sub(r'[^A-Za-z0-9-]', '_', case.id)[:80]}"
            media = []
            for i, picture in enumerate(case.pictures()):
                media.append(f"media/{stem}-{i}.png")
                picture.save(folder / media[-1])
            yield case.as_json(media)

    path = folder / "suite.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for line in lines():
            print(json.dumps(line, ensure_ascii=False), file=file)
    return path


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="mars_gguf.evaluate.render",
        description="Write the pictures and videos of a suite, and a suite.jsonl that names them.",
    )
    p.add_argument("-o", "--out", metavar="DIR", type=Path, required=True, help="folder to write")
    p.add_argument("--suite", metavar="NAME_OR_PATH", default="builtin", help="(default: builtin)")
    p.add_argument("--seed", type=seed, default=0, metavar="N")
    args = p.parse_args(argv)
    with command():
        print(f"wrote {write_suite(args.suite, args.out, args.seed)}")


if __name__ == "__main__":
    main()
