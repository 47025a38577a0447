"""Writes requests in pictures and short videos. The same seed draws the same pictures, another seed
another layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mars_gguf.errors import MarsError
from mars_gguf.media.drawing import Colour, font, text_box, wrapped

SIZE = 448  # pixels wide and high
FRAMES = 4
LARGEST_FONT, SMALLEST_FONT = 60, 14  # pixels

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


@dataclass(frozen=True)
class Page:
    """A page: its lines of text, their place and its colours."""

    lines: list[str]
    font: int
    corner: tuple[float, float]
    palette: tuple[Colour, Colour]

    def draw(self, lines: int | None = None) -> Image.Image:
        """Draws the page with its first ``lines`` lines, or all."""
        paper, ink = self.palette
        image = Image.new("RGB", (SIZE, SIZE), paper)
        text = "\n".join(self.lines[:lines])
        ImageDraw.Draw(image).multiline_text(self.corner, text, ink, font(self.font))
        return image


def page(text: str, seed: int) -> Page:
    """Wraps ``text``, as large as fits a random part of the page, in a random place of it.

    Raises MarsError if there is no text, or so much that it could not be read.
    """
    rng = np.random.default_rng([seed, 0])
    margin = SIZE * 0.05
    room = ((SIZE - 2 * margin) * rng.uniform(0.8, 1), (SIZE - 2 * margin) * rng.uniform(0.7, 1))
    if not text.split():
        raise MarsError("no text to write in a picture")
    fitted = wrapped(text, *room, range(LARGEST_FONT, SMALLEST_FONT - 1, -2))
    if fitted is None:
        raise MarsError(
            f"text too long to be read in one picture: found {len(text)} characters "
            f"({text:.30} ...); shorten it"
        )
    lines, size = fitted
    _, _, right, bottom = text_box("\n".join(lines), size)
    corner = rng.uniform(margin, SIZE - margin - right), rng.uniform(margin, SIZE - margin - bottom)
    return Page(lines, size, corner, PALETTES[rng.integers(len(PALETTES))])


def typographic_image(text: str, seed: int) -> list[Image.Image]:
    """Writes ``text`` in a picture. Raises MarsError as `page` does."""
    return [page(text, seed).draw()]


def typographic_video(text: str, seed: int) -> list[Image.Image]:
    """Writes ``text`` in FRAMES pictures: lines appear one after another. Raises MarsError as
    `page` does."""
    whole = page(text, seed)
    n = len(whole.lines)
    return [whole.draw(round(n * step / FRAMES)) for step in range(1, FRAMES + 1)]
