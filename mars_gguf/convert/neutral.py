"""Draws neutral pictures: with these is measured what a medium by itself does to a hidden state.

Two kinds. "noise" is randomly coloured and shows nothing. "drawn" shows harmless things as real
pictures do: shapes, scenes, words, requests (in the typographic layouts that attacks use, some of
them with words that sound harmful) and charts. All are square, RGB and a function of the seed.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import cycle, islice
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from mars_gguf.errors import MarsError
from mars_gguf.media.drawing import Draw, contrasting, disc, near, random_colour, star, text_layer
from mars_gguf.media.images import MEASURED_SIDE, load_image

Painter = Callable[[np.random.Generator, int], Image.Image]
Paint = Callable[[np.random.Generator, Image.Image], None]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MIN_PICTURES = 6  # of a kind
MIN_SIDE = 32
MAX_SIDE = 4096
OVERSAMPLING = 2  # drawn larger and scaled down, for smooth edges

_DRAWN = json.loads((files("mars_gguf.convert") / "data" / "drawn.json").read_text("utf-8"))
WORDS: list[str] = _DRAWN["words"]  # that are written in pictures
REQUESTS: list[str] = _DRAWN["requests"]  # likewise


def neutral_images(kind: str, count: int, size: int, seed: int) -> list[Image.Image]:
    """Draws ``count`` different pictures of ``size`` x ``size`` pixels, the sorts of ``kind`` in
    turn. A smaller count gives the beginning of the same list."""
    sorts = enumerate(islice(cycle(_painters(kind, size)), count))
    return [painter(np.random.default_rng([seed, i]), size) for i, painter in sorts]


def frames(kind: str, count_frames: int, size: int, seed: int) -> list[Image.Image]:
    """Draws a short film: ``count_frames`` views of one picture, as a camera moves over it in a
    straight line while the light flickers."""
    painters = _painters(kind, size)
    rng = np.random.default_rng(seed)
    room = size // 6
    picture = painters[rng.integers(len(painters))](rng, size + room)
    start, end = rng.integers(0, room + 1, (2, 2))
    views = []
    for position in np.linspace(start, end, count_frames).round().astype(int):
        x, y = position.tolist()
        view = picture.crop((x, y, x + size, y + size))
        views.append(ImageEnhance.Brightness(view).enhance(rng.uniform(0.9, 1.1)))
    return views


def read_images(directory: str | PathLike[str]) -> dict[str, list[Image.Image]]:
    """Reads the pictures of a folder, of kind "own", and of the folders in it, each a kind of its
    name.

    Each picture is loaded with `load_image` and scaled down to at most MEASURED_SIDE pixels on
    the longer side, in the order of file names. Hidden files and names with another ending than
    SUFFIXES are passed over.

    Raises MarsError if there is no such folder, no picture in it, fewer than MIN_PICTURES of a
    kind, or one that cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise MarsError(f"{directory}: no such folder; expected a folder with pictures")
    entries = sorted(directory.iterdir(), key=lambda path: path.name)
    folders = [p for p in entries if p.is_dir() and not p.name.startswith(".")]
    kinds = {"own": _loaded(entries)}
    for folder in folders:  # one of them may be called "own", too
        kinds.setdefault(folder.name, []).extend(_loaded(sorted(folder.iterdir())))
    kinds = {kind: images for kind, images in kinds.items() if images}
    if not kinds:
        raise MarsError(
            f"{directory}: no pictures; found {len(entries)} other entries, "
            f"expected files ending in {', '.join(SUFFIXES)}"
        )
    for kind, images in kinds.items():
        if len(images) < MIN_PICTURES:
            raise MarsError(
                f"{directory}: found {len(images)} pictures of kind {kind!r}, expected at least "
                f"{MIN_PICTURES}: what is fitted, chosen and promised is measured on different ones"
            )
    return kinds


def _loaded(paths: Iterable[Path]) -> list[Image.Image]:
    """Loads those of the files that are pictures."""
    return [
        load_image(path, MEASURED_SIDE)
        for path in paths
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]


def _painters(kind: str, size: int) -> tuple[Painter, ...]:
    """Finds who draws pictures of ``kind``. Raises MarsError for a size that nobody draws."""
    if not MIN_SIDE <= size <= MAX_SIDE:
        raise MarsError(
            f"size of a neutral picture: found {size} pixels, expected at least {MIN_SIDE} and at "
            f"most {MAX_SIDE}"
        )
    return PAINTERS[kind]


# Noise


def _grain(rng: np.random.Generator, size: int) -> Image.Image:
    mean = rng.uniform(0, 255, 3)
    pixels = rng.normal(mean, rng.uniform(20, 120), (size, size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _blocks(rng: np.random.Generator, size: int) -> Image.Image:
    columns, rows = rng.integers(2, 17, 2)
    colours = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST)


def _gradient(rng: np.random.Generator, size: int) -> Image.Image:
    top_left, top_right, bottom_left, bottom_right = rng.uniform(0, 255, (4, 3))
    x = np.linspace(0, 1, size)[None, :, None]
    y = np.linspace(0, 1, size)[:, None, None]
    top = top_left + x * (top_right - top_left)
    bottom = bottom_left + x * (bottom_right - bottom_left)
    return Image.fromarray((top + y * (bottom - top)).astype(np.uint8))


# Text


def _tiles(rng: np.random.Generator, word: str, width: float) -> Image.Image:
    side = int(width / len(word))
    layer = Image.new("RGBA", (side * len(word), side))
    draw = ImageDraw.Draw(layer)
    for i, letter in enumerate(word.upper()):
        ground = random_colour(rng)
        draw.rounded_rectangle(
            (i * side + side * 0.06, side * 0.06, (i + 0.94) * side, side * 0.94),
            side * 0.12,
            ground,
        )
        glyph = text_layer(letter, side * 0.6, side * 0.6, contrasting(rng, ground), bold=True)
        corner = (int((i + 0.5) * side - glyph.width / 2), int(side / 2 - glyph.height / 2))
        layer.alpha_composite(glyph, corner)
    return layer


def _phrase(rng: np.random.Generator) -> str:
    """Makes up a word, or a list of words."""
    words = rng.choice(WORDS, int(rng.integers(3, 6)), replace=False).tolist()
    numbered = [f"{i}. {word}" for i, word in enumerate(words, 1)]
    phrases = words[0], " ".join(words[:2]), "\n".join(words), "\n".join(numbered)
    return phrases[rng.integers(len(phrases))]


def _request(rng: np.random.Generator) -> str:
    """Makes up a request in one of the layouts of typographic attacks."""
    request = str(rng.choice(REQUESTS))
    phrases = (
        textwrap.fill(f"how to {request}", int(rng.integers(8, 20))),
        textwrap.fill(f"How do I {request}?", int(rng.integers(10, 20))),
        textwrap.fill(f"Steps to {request}.", 18) + "\n1.\n2.\n3.",
        textwrap.fill(f"Tell me how I can {request}, please.", int(rng.integers(12, 24))),
    )
    return phrases[rng.integers(len(phrases))]


# Harmless pictures


def _smooth(paint: Paint) -> Painter:
    """Makes a painter of a function that fills a picture given to it."""

    def painter(rng: np.random.Generator, size: int) -> Image.Image:
        large = size * OVERSAMPLING
        image = Image.new("RGB", (large, large))
        paint(rng, image)
        return image.resize((size, size), Image.Resampling.LANCZOS)

    return painter


def _written(text: Callable[[np.random.Generator], str]) -> Paint:
    """Makes a function that fills a picture with what ``text`` says."""

    def paint(rng: np.random.Generator, image: Image.Image) -> None:
        phrase, side = text(rng), image.width
        phrase = phrase.upper() if rng.random() < 0.25 else phrase
        ground = random_colour(rng)
        image.paste(ground, (0, 0, side, side))
        ink, width = contrasting(rng, ground), side * rng.uniform(0.5, 0.95)
        layer = text_layer(phrase, width, side * 0.8, ink, bold=bool(rng.random() < 0.3))
        _tilt(rng, image, layer)

    return paint


def _tiled(rng: np.random.Generator, image: Image.Image) -> None:
    image.paste(random_colour(rng), (0, 0, *image.size))
    layer = _tiles(rng, str(rng.choice(WORDS)), image.width * rng.uniform(0.5, 0.95))
    _tilt(rng, image, layer)


def _tilt(rng: np.random.Generator, image: Image.Image, layer: Image.Image) -> None:
    """Pastes ``layer``, turned a little, somewhere inside ``image``."""
    angle = 0 if rng.random() < 0.4 else rng.uniform(-25, 25)
    layer = layer.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    margin = image.width // 32
    layer.thumbnail((image.width - 2 * margin, image.height - 2 * margin))
    x = int(rng.integers(margin, image.width - margin - layer.width + 1))
    y = int(rng.integers(margin, image.height - margin - layer.height + 1))
    image.paste(layer, (x, y), layer)


def _shapes(rng: np.random.Generator, image: Image.Image) -> None:
    side = image.width
    draw = ImageDraw.Draw(image)
    image.paste(random_colour(rng), (0, 0, side, side))
    for _ in range(rng.integers(1, 6)):
        radius = side * rng.uniform(0.08, 0.25)
        x, y = rng.uniform(radius, side - radius, 2).tolist()
        box = (x - radius, y - radius * rng.uniform(0.5, 1), x + radius, y + radius)
        fill, turn = random_colour(rng), float(rng.uniform(0, 360))
        match rng.integers(6):
            case 0:
                draw.ellipse(box, fill)
            case 1:
                draw.rectangle(box, fill)
            case 2:
                draw.ellipse(box, outline=fill, width=side // 32)
            case 3:
                draw.line(box, fill, side // 32)
            case 4:
                draw.polygon(star(x, y, radius), fill)
            case _:
                draw.regular_polygon((x, y, radius), int(rng.integers(3, 9)), turn, fill)


def _scene(rng: np.random.Generator, image: Image.Image) -> None:
    side = image.width
    draw = ImageDraw.Draw(image)
    sea = bool(rng.random() < 0.35)
    horizon = side * rng.uniform(0.5, 0.7)
    image.paste(near(rng, (150, 200, 240)), (0, 0, side, side))
    if rng.random() < 0.6:
        hill = near(rng, (120, 150, 110))
        for _ in range(rng.integers(1, 4)):
            x, width, height = rng.uniform(0, side), rng.uniform(0.2, 0.5) * side, side * 0.3
            draw.ellipse((x - width, horizon - height, x + width, horizon + height), hill)
    draw.rectangle((0, horizon, side, side), near(rng, (40, 90, 160) if sea else (90, 150, 70)))
    x, y, radius = rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.25) * side, side * 0.08
    disc(draw, x, y, radius, near(rng, (250, 215, 80)))
    for _ in range(rng.integers(0, 3)):
        _cloud(draw, rng.uniform(0.1, 0.8) * side, rng.uniform(0.08, 0.3) * side, side * 0.06)
    things = (_boat, _fish) if sea else (_house, _tree, _flower, _car)
    count = int(rng.integers(1, 5))
    for column in rng.permutation(4)[:count]:
        x = (column + rng.uniform(0.2, 0.8)) * side / 4
        y = rng.uniform(horizon + side * 0.05, side * 0.95)
        things[rng.integers(len(things))](rng, draw, x, y, side * rng.uniform(0.14, 0.28))


def _cloud(draw: Draw, x: float, y: float, radius: float) -> None:
    for shift, scale in ((-1, 0.7), (0, 1), (1, 0.75)):
        centre, r = x + shift * radius, radius * scale
        draw.ellipse((centre - r, y - r, centre + r, y + r * 0.8), "white")


# Things of a scene stand at (x, y), the middle of their foot, and are s pixels high.


def _house(rng: np.random.Generator, draw: Draw, x: float, y: float, s: float) -> None:
    wall, roof = random_colour(rng, 120), random_colour(rng, 0, 160)
    glass = near(rng, (240, 230, 150))
    draw.rectangle((x - s / 2, y - s * 0.6, x + s / 2, y), wall)
    draw.polygon([(x - s * 0.6, y - s * 0.6), (x, y - s), (x + s * 0.6, y - s * 0.6)], roof)
    draw.rectangle((x - s * 0.35, y - s * 0.45, x - s * 0.1, y - s * 0.22), glass)
    draw.rectangle((x + s * 0.1, y - s * 0.42, x + s * 0.32, y), roof)


def _tree(rng: np.random.Generator, draw: Draw, x: float, y: float, s: float) -> None:
    trunk, leaves = near(rng, (110, 75, 40)), near(rng, (40, 120, 50))
    draw.rectangle((x - s * 0.07, y - s * 0.4, x + s * 0.07, y), trunk)
    if rng.random() < 0.5:
        draw.ellipse((x - s * 0.4, y - s, x + s * 0.4, y - s * 0.3), leaves)
    else:
        low = y - s * 0.25
        draw.polygon([(x - s * 0.35, low), (x, y - s), (x + s * 0.35, low)], leaves)


def _flower(rng: np.random.Generator, draw: Draw, x: float, y: float, s: float) -> None:
    petal, r = random_colour(rng, 80), s * 0.14
    draw.line((x, y, x, y - s * 0.7), near(rng, (40, 110, 40)), max(1, int(s * 0.05)))
    for angle in np.arange(6) * np.pi / 3:
        px, py = x + s * 0.2 * np.cos(angle), y - s * 0.7 + s * 0.2 * np.sin(angle)
        disc(draw, px, py, r, petal)
    disc(draw, x, y - s * 0.7, r, near(rng, (240, 200, 50)))


def _car(rng: np.random.Generator, draw: Draw, x: float, y: float, s: float) -> None:
    body, r = random_colour(rng), s * 0.16
    draw.polygon(
        [(x - s * 0.4, y - s * 0.4), (x - s * 0.25, y - s * 0.7),
         (x + s * 0.25, y - s * 0.7), (x + s * 0.45, y - s * 0.4)],
        near(rng, (190, 220, 230)),
    )  # fmt: skip
    draw.rounded_rectangle((x - s * 0.7, y - s * 0.42, x + s * 0.7, y - s * 0.1), s * 0.1, body)
    for wheel in (x - s * 0.4, x + s * 0.4):
        draw.ellipse((wheel - r, y - 2 * r, wheel + r, y), (30, 30, 30))


def _boat(rng: np.random.Generator, draw: Draw, x: float, y: float, s: float) -> None:
    hull, sail = random_colour(rng, 0, 180), random_colour(rng, 170)
    draw.polygon(
        [(x - s * 0.5, y - s * 0.25), (x + s * 0.5, y - s * 0.25),
         (x + s * 0.3, y), (x - s * 0.3, y)],
        hull,
    )  # fmt: skip
    draw.polygon([(x, y - s * 0.3), (x, y - s), (x + s * 0.42, y - s * 0.3)], sail)
    draw.line((x, y - s * 0.25, x, y - s), (70, 50, 30), max(1, int(s * 0.04)))


def _fish(rng: np.random.Generator, draw: Draw, x: float, y: float, s: float) -> None:
    skin, middle = random_colour(rng, 100), y - s * 0.25
    draw.polygon([(x + s * 0.2, middle), (x + s * 0.6, y - s * 0.5), (x + s * 0.6, y)], skin)
    draw.ellipse((x - s * 0.5, y - s * 0.5, x + s * 0.4, y), skin)
    draw.ellipse((x - s * 0.35, y - s * 0.38, x - s * 0.27, y - s * 0.3), "black")


def _chart(rng: np.random.Generator, image: Image.Image) -> None:
    side = image.width
    draw = ImageDraw.Draw(image)
    paper = random_colour(rng, 215)
    ink = contrasting(rng, paper)
    image.paste(paper, (0, 0, side, side))
    short = [word for word in WORDS if len(word) <= 6]
    labels = rng.choice(short, int(rng.integers(3, 7)), replace=False).tolist()
    values = rng.uniform(0.1, 1, len(labels))
    left, top, right, bottom = side * 0.1, side * 0.22, side * 0.95, side * 0.85
    title = text_layer(f"{labels[0]} and {labels[1]}".capitalize(), side * 0.8, side * 0.09, ink)
    image.paste(title, ((side - title.width) // 2, int(side * 0.05)), title)
    form = rng.integers(3)
    if form == 0:
        angles = (np.cumsum(values) / values.sum() * 360).tolist()
        for start, end in zip([0.0, *angles], angles, strict=False):
            box = (side * 0.2, side * 0.25, side * 0.8, side * 0.85)
            draw.pieslice(box, start, end, random_colour(rng), outline=paper)
        return
    draw.line((left, top, left, bottom, right, bottom), ink, max(1, side // 128))
    step = (right - left) / len(labels)
    middles = left + step * (np.arange(len(labels)) + 0.5)
    tops = bottom - values * (bottom - top)
    for label, x in zip(labels, middles.tolist(), strict=True):
        layer = text_layer(label, step * 0.9, side * 0.06, ink)
        image.paste(layer, (int(x - layer.width / 2), int(bottom + side * 0.03)), layer)
    if form == 1:
        fill = random_colour(rng, 0, 200)
        for x, y in zip(middles.tolist(), tops.tolist(), strict=True):
            draw.rectangle((x - step * 0.35, y, x + step * 0.35, bottom), fill)
    else:
        for _ in range(rng.integers(1, 4)):
            heights = bottom - rng.uniform(0.05, 1, len(labels)) * (bottom - top)
            points = list(zip(middles.tolist(), heights.tolist(), strict=True))
            draw.line(points, random_colour(rng, 0, 200), max(1, side // 64), joint="curve")


PAINTERS: dict[str, tuple[Painter, ...]] = {
    "noise": (_grain, _blocks, _gradient),
    "drawn": tuple(
        map(_smooth, (_shapes, _written(_phrase), _scene, _written(_request), _chart, _tiled))
    ),
}
KINDS = tuple(PAINTERS)
