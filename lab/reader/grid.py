"""Draws texts as pictures: a grid of cells, in each of which one token of the model is written.

A token that begins a word (its text begins with a space) stands in the lower half of its cell; any
other, the very first or the rest of a word, in the upper half with a line below it, so that the two
do not look alike to a filter that was whitened. Cells that are left over stay blank.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from llama_cpp import Llama
from PIL import Image, ImageDraw, ImageFilter

from mars_gguf.media.drawing import font

SIDE = 64  # pixels of a cell
GRID = 5  # cells in a row, and rows
LARGEST, SMALLEST = 30, 6  # size of letters

Pixels = npt.NDArray[np.float32]


class TooLong(Exception):
    """A text that has more tokens than the grid has cells."""


def draw_cell(text: str, dx: float = 0, dy: float = 0) -> Image.Image:
    """Draws the cell of a token with this text, in grey, moved by (dx, dy) pixels."""
    cell = Image.new("L", (SIDE, SIDE), 255)
    word = "\u00b6" if text == "\n" else text.strip()
    if not word:
        return cell
    draw = ImageDraw.Draw(cell)
    width = draw.textlength(word, font(100))
    size = max(SMALLEST, min(LARGEST, int(100 * (SIDE - 8) / width)))
    begins = text.startswith(" ")
    middle = (SIDE / 2 + dx, SIDE * (0.7 if begins else 0.27) + dy)
    draw.text(middle, word, 0, font(size), anchor="mm")
    if not begins:
        y = SIDE * 0.53 + dy
        draw.line((4 + dx, y, SIDE - 4 + dx, y), 0, 2)
    return cell


def jittered(text: str, rng: np.random.Generator) -> Image.Image:
    """Draws the cell as it might look elsewhere: moved by a pixel, blurred, noisy."""
    dx, dy = rng.integers(-1, 2, 2).tolist()
    cell = draw_cell(text, dx, dy).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    pixels = np.asarray(cell, np.float32)
    pixels = pixels + rng.normal(0, rng.uniform(0, 40), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def ink(cells: Iterable[Image.Image]) -> Pixels:
    """Measures how dark the pixels are, 0 white to 1 black: [n, SIDE * SIDE]."""
    return np.stack([1 - np.asarray(cell, np.float32).ravel() / 255 for cell in cells])


def picture(texts: Sequence[str]) -> Image.Image:
    """Draws the grid of these tokens' cells, row by row. Raises TooLong."""
    if len(texts) > GRID * GRID:
        raise TooLong(f"{len(texts)} tokens, there is room for {GRID * GRID}: {''.join(texts)!r}")
    image = Image.new("RGB", (GRID * SIDE, GRID * SIDE), "white")
    for i, text in enumerate(texts):
        image.paste(draw_cell(text).convert("RGB"), (i % GRID * SIDE, i // GRID * SIDE))
    return image


def is_readable(text: str, number: int) -> bool:
    """Tells whether a token with this text and id gets a filter: words of lower-case letters,
    beginnings of sentences, short parts of words, single letters, digits and marks; of rare tokens,
    which have high ids, the beginnings of words alone."""
    return bool(
        re.fullmatch(r" [A-Za-z]?[a-z]{1,13}| ?[!-~]|\n", text)
        or (number < 20_000 and re.fullmatch(r"[A-Z][a-z]{1,8}", text))
        or (number < 3_000 and re.fullmatch(r"[a-z]{2,5}", text))
    )


class Writer:
    """Writes texts as pictures for a model whose projector knows the tokens ``known``."""

    def __init__(self, llama: Llama, known: Collection[str]) -> None:
        self.llama, self.known = llama, frozenset(known)

    def tokens(self, text: str) -> list[str]:
        """Splits ``text`` into the model's tokens, those that the projector does not know in parts
        that it does; characters that it knows in no way are left out."""
        numbers = self.llama.tokenize(text.encode(), add_bos=False, special=False)
        texts, before = [], b""
        for i in range(len(numbers)):
            # Of all so far: alone, a token may lose the space that it begins with.
            now = self.llama.detokenize(numbers[: i + 1])
            texts.append(now[len(before) :].decode(errors="ignore"))
            before = now
        return [part for text in texts for part in self._known_parts(text)]

    def picture(self, text: str) -> Image.Image:
        """Draws ``text`` as a picture. Raises TooLong."""
        return picture(self.tokens(text))

    def _known_parts(self, text: str) -> list[str]:
        if not text or text in self.known:
            return [text] * bool(text)
        for end in range(len(text) - 1, 0, -1):
            if text[:end] in self.known:
                return [text[:end], *self._known_parts(text[end:])]
        return self._known_parts(text[1:])
