from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.demo_model.lessons import FONTS
from mars_gguf.demo_model import world
from mars_gguf.demo_model.pictures import FONTS_HELD_OUT, word_mask
from mars_gguf.demo_model.world import Thing


def test_a_quarter_of_the_fonts_is_held_out() -> None:
    assert not {*FONTS} & {*FONTS_HELD_OUT}
    assert len(FONTS_HELD_OUT) >= (len(FONTS) + len(FONTS_HELD_OUT)) / 4 >= 3


@given(
    st.sampled_from(world.THINGS), st.integers(0, 10**6), st.sampled_from([FONTS, FONTS_HELD_OUT])
)
@settings(max_examples=60, deadline=None)
def test_every_letter_lies_in_the_ink_of_its_picture(
    thing: Thing, seed: int, fonts: list[str]
) -> None:
    mask, letters = word_mask(random.Random(seed), thing.word, fonts)
    assert "".join(letter for letter, _, _ in letters) == thing.word.replace(" ", "")
    rows, columns = np.nonzero(mask > 60)
    for _, x, y in letters:
        assert columns.min() - 3 <= x <= columns.max() + 4
        assert rows.min() - 6 <= y <= rows.max() + 6
    assert not mask[:1].any() or not mask[-1:].any()
