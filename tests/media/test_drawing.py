from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mars_gguf.convert import neutral
from mars_gguf.media.drawing import SHAPES, contrasting, draw_shape, text_box, text_layer, wrapped


@pytest.mark.parametrize("text", [*neutral.WORDS, *neutral.REQUESTS])
def test_text_fills_its_box_and_is_not_cut_at_any_edge(text: str) -> None:
    for bold in (False, True):
        layer = text_layer(text, 300, 100, (255, 255, 255), bold=bold)
        alpha = np.asarray(layer)[..., 3]
        assert layer.width <= 310 and layer.height <= 105
        assert layer.width > 270 or layer.height > 85
        assert not any(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))


def test_wrapped_text_is_whole_within_its_room_and_as_large_as_fits() -> None:
    sizes = range(60, 13, -2)
    for words in range(1, 24):
        text = " ".join(neutral.WORDS[:words])
        fitted = wrapped(text, 300, 200, sizes)
        assert fitted is not None
        lines, size = fitted
        assert " ".join(lines) == text
        assert max(text_box("\n".join(lines), size)[2:]) <= 300
        assert size == 60 or wrapped(text, 300, 200, [size + 2]) is None
    assert wrapped("x" * 200, 300, 200, sizes) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lies_within_its_radius(shape: str) -> None:
    image = Image.new("L", (100, 100))
    draw_shape(ImageDraw.Draw(image), shape, 50, 50, 40, 255)  # type: ignore[arg-type]
    y, x = np.nonzero(np.asarray(image))
    assert len(x) > 1000 and np.hypot(x - 50, y - 50).max() < (51 if shape == "square" else 42)


def test_a_contrasting_colour_is_much_lighter_or_darker() -> None:
    rng = np.random.default_rng(0)
    for ground in ((0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0)):
        greys = [Image.new("RGB", (1, 1), c).convert("L").getpixel((0, 0))
                 for c in (ground, contrasting(rng, ground))]  # fmt: skip
        assert abs(int(greys[0]) - int(greys[1])) >= 89  # type: ignore[arg-type]
