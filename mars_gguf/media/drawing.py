"""Draws colours, shapes and text that fits into a box.

All pictures that this package draws are made with it, those of the demo model's own world aside.
Only the font that Pillow ships is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
Box = tuple[float, float, float, float]  # left, top, right, bottom

SHAPES = ("circle", "square", "triangle", "star")


# Colours


def random_colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> Colour:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def near(rng: np.random.Generator, colour: Colour) -> Colour:
    """Draws a colour that is much like another."""
    red, green, blue = np.clip(colour + rng.normal(0, 25, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def contrasting(rng: np.random.Generator, ground: Colour) -> Colour:
    """Draws a random colour that is much lighter or darker than ``ground``."""
    while True:
        colour = random_colour(rng)
        if abs(_luminance(colour) - _luminance(ground)) > 90:
            return colour


def _luminance(colour: Colour) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


# Shapes


def disc(draw: Draw, x: float, y: float, radius: float, fill: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


def star(
    x: float, y: float, radius: float, *, points: int = 5, inner: float = 0.45
) -> list[tuple[float, float]]:
    """Places the corners of a star, the first at its top.

    ``inner`` is how far the corners between its points lie from the middle, in radii. With 3 points
    and inner 0.5 it is a triangle.
    """
    corners = np.arange(2 * points)
    angles = np.pi * (corners / points - 0.5)
    radii = np.where(corners % 2, inner, 1) * radius
    xs, ys = x + radii * np.cos(angles), y + radii * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def draw_shape(draw: Draw, shape: str, x: float, y: float, radius: float, fill: Colour) -> None:
    """Draws one of `SHAPES`, its middle at (x, y)."""
    if shape == "circle":
        disc(draw, x, y, radius, fill)
    elif shape == "square":
        side = radius * 0.88
        draw.rectangle((x - side, y - side, x + side, y + side), fill)
    elif shape == "triangle":
        draw.polygon(star(x, y, radius, points=3, inner=0.5), fill)
    else:
        draw.polygon(star(x, y, radius, inner=0.4), fill)


# Text


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def text_box(text: str, size: int, stroke: int = 0) -> Box:
    """Measures what lines of text cover in pixels, written at (0, 0)."""
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    return measure.multiline_textbbox((0, 0), text, font(size), stroke_width=stroke)


def text_layer(
    text: str, width: float, height: float, colour: Colour, *, bold: bool = False
) -> Image.Image:
    """Draws lines of text as a transparent picture, as large as fits ``width`` x ``height``."""

    def stroke(size: int) -> int:
        return size // 20 if bold else 0

    left, top, right, bottom = text_box(text, 100, stroke(100))
    size = max(6, int(100 * min(width / (right - left), height / (bottom - top))))
    left, top, right, bottom = text_box(text, size, stroke(size))
    layer = Image.new("RGBA", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(layer).multiline_text(
        (1 - left, 1 - top), text, colour, font(size), stroke_width=stroke(size)
    )
    return layer


def wrapped(
    text: str, width: float, height: float, sizes: Sequence[int]
) -> tuple[list[str], int] | None:
    """Breaks the text into lines, in the first of the font sizes with which they fit ``width`` x
    ``height``; None if none of them fits."""
    for size in sizes:
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and text_box(longer, size)[2] <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        _, _, right, bottom = text_box("\n".join(lines), size)
        if right <= width and bottom <= height:
            return lines, size
    return None
