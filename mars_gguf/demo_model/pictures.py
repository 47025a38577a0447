"""Draws the pictures of the demo model's world: words and shapes.

Needs the fonts that come with matplotlib.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mars_gguf.demo_model.world import COLOURS, Shapes, Thing

Mask = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]
Letters = list[tuple[str, float, float]]  # with the x and y of their centres, in pixels

SIZE = 80  # width and height of every picture, in pixels
GRAIN = 16
FONTS_HELD_OUT = (
    "DejaVuSans-Oblique DejaVuSansMono-Bold DejaVuSerif-Italic STIXGeneralBol cmss10"
).split()


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # takes a moment

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / f"{name}.ttf", size)


def _line(text: str, font: ImageFont.FreeTypeFont) -> tuple[Image.Image, Letters]:
    # Word by word: the cm fonts have no space glyph.
    gap = round(0.35 * font.size)
    ascent, descent = font.getmetrics()
    words = text.split()
    boxes = [font.getbbox(word) for word in words]
    width = math.ceil(sum(right - left for left, _, right, _ in boxes)) + gap * (len(words) - 1)
    image = Image.new("L", (width, ascent + descent))
    draw, x, letters = ImageDraw.Draw(image), 0.0, []
    for word, (left, _, right, _) in zip(words, boxes, strict=True):
        draw.text((x - left, 0), word, font=font, fill=255)
        for i, letter in enumerate(word):
            start, end = font.getlength(word[:i]), font.getlength(word[: i + 1])
            letters.append((letter, x - left + (start + end) / 2, 0.65 * ascent))
        x += right - left + gap
    return image, letters


def word_mask(
    rng: random.Random, text: str, fonts: Sequence[str] = FONTS_HELD_OUT
) -> tuple[Mask, Letters]:
    """Writes ``text`` somewhere on a picture, on one line or two, and says where its letters are.

    Font, size, position, rotation and blur are drawn from ``rng``. The mask is ink coverage 0..255,
    shape ``[SIZE, SIZE]``.
    """
    font = _font(rng.choice(fonts), 40)
    split = " " in text and rng.random() < 0.8
    lines = [_line(part, font) for part in (text.split(" ", 1) if split else [text])]
    width, height = max(line.width for line, _ in lines), lines[0][0].height
    block = Image.new("L", (width, height * len(lines)))
    letters = []
    for i, (line, centres) in enumerate(lines):
        left, top = (width - line.width) // 2, i * height
        block.paste(line, (left, top))
        letters += [(letter, x + left, y + top) for letter, x, y in centres]
    angle = rng.uniform(-10, 10)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = block.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    box = turned.getbbox() or (0, 0, *turned.size)
    inked = turned.crop(box)
    scale = min((SIZE - 6) / inked.width, (SIZE - 6) / inked.height, 0.65) * rng.uniform(0.8, 1)
    size = max(1, round(inked.width * scale)), max(1, round(inked.height * scale))
    left, top = rng.randint(2, SIZE - 2 - size[0]), rng.randint(2, SIZE - 2 - size[1])
    mask = Image.new("L", (SIZE, SIZE))
    mask.paste(inked.resize(size, Image.Resampling.BOX), (left, top))
    if rng.random() < 0.4:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    placed = []
    for letter, x, y in letters:
        dx, dy = x - block.width / 2, y - block.height / 2
        x = turned.width / 2 + dx * cos + dy * sin - box[0]
        y = turned.height / 2 - dx * sin + dy * cos - box[1]
        placed.append((letter, left + x * scale, top + y * scale))
    return np.asarray(mask, np.uint8), placed


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "square":
        draw.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=255)
    else:
        points = []
        for k in range(10):
            radius = r if k % 2 == 0 else 0.42 * r
            angle = k * math.pi / 5
            points.append((x + radius * math.sin(angle), y - radius * math.cos(angle)))
        draw.polygon(points, fill=255)


def shape_mask(rng: random.Random, shape: str, count: int) -> Mask:
    """Draws ``count`` shapes in squares of a 3 by 3 grid, as ink coverage ``[SIZE, SIZE]``."""
    image = Image.new("L", (SIZE, SIZE))
    draw, side = ImageDraw.Draw(image), SIZE / 3
    for k in rng.sample(range(9), count):
        x = (k % 3 + 0.5) * side + rng.uniform(-3, 3)
        y = (k // 3 + 0.5) * side + rng.uniform(-3, 3)
        _draw_shape(draw, shape, x, y, rng.uniform(7.5, 10.5))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    return np.asarray(image, np.uint8)


def paint(noise: np.random.Generator, masks: Mask, inks: Sequence[str | None]) -> Pixels:
    """Colours ink masks ``[n, SIZE, SIZE]``, which gives RGB pictures ``[n, SIZE, SIZE, 3]``.

    An ink of a name in ``COLOURS`` is that colour, varied a little, on light paper; ``None`` is a
    random dark colour on random light paper, or the other way round. Each picture is grained with
    a standard deviation up to `GRAIN`, of 255.
    """
    n = len(masks)
    ink = np.empty((n, 3), np.float32)
    paper = np.empty((n, 3), np.float32)
    for i, name in enumerate(inks):
        if name is None:
            dark, light = noise.uniform(0, 100, 3), noise.uniform(155, 255, 3)
            ink[i], paper[i] = (dark, light) if noise.random() < 0.75 else (light, dark)
        else:
            ink[i] = np.clip(COLOURS[name] + noise.uniform(-20, 20, 3), 0, 255)
            paper[i] = np.clip(noise.uniform(220, 255) + noise.uniform(-8, 8, 3), 0, 255)
    cover = masks[..., None].astype(np.float32) / 255
    pictures = paper[:, None, None] * (1 - cover) + ink[:, None, None] * cover
    strength = noise.uniform(0, GRAIN, (n, 1, 1, 1)).astype(np.float32)
    pictures += noise.standard_normal(pictures.shape, np.float32) * strength
    return np.clip(pictures, 0, 255).astype(np.uint8)


def word_picture(rng: random.Random, thing: Thing, fonts: Sequence[str] = FONTS_HELD_OUT) -> Pixels:
    """Writes the thing's name on a picture ``[SIZE, SIZE, 3]``."""
    mask, _ = word_mask(rng, thing.word, fonts)
    return paint(np.random.default_rng(rng.getrandbits(32)), mask[None], [None])[0]


def shapes_picture(rng: random.Random, shapes: Shapes) -> Pixels:
    """Draws shapes on a picture ``[SIZE, SIZE, 3]``."""
    mask = shape_mask(rng, shapes.shape, shapes.count)
    return paint(np.random.default_rng(rng.getrandbits(32)), mask[None], [shapes.colour])[0]
