from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from reader_inputs import (
    Cut,
    no_bar,
)

from lab.reader.states import (
    BLANK,
    DROPPED,
    LAST,
    MEAN,
    TAIL,
    WORDINGS,
    Seen,
)
from mars_gguf.convert.extractor import observe
from mars_gguf.convert.splits import Splits


def test_views_are_of_the_last_tokens_and_of_prompts_without_their_pictures(
    seen: Seen, plain: Cut
) -> None:
    prompts = seen.requests["image", "harmful"].prompts[:3]
    views = seen.requests["image", "harmful"].states[:3]
    ends = []
    try:
        for plain.cut in range(TAIL):
            plain.forget()
            ends.append(observe(plain, prompts, no_bar).states)
    finally:
        plain.cut = 0
        plain.forget()
    close = partial(np.testing.assert_allclose, rtol=0.02, atol=0.02 * np.abs(ends[0]).max())
    close(views[:, :, LAST], ends[0])
    close(views[:, :, MEAN], np.mean(ends, axis=0))
    assert np.abs(views[:, :, LAST] - views[:, :, MEAN]).max() > 0.1 * np.abs(ends[0]).max()
    dropped = observe(plain, [replace(p, images=()) for p in prompts], no_bar).states
    close(views[:, :, DROPPED], dropped)
    assert np.abs(views[:, :, BLANK] - dropped).max() > 0.1 * np.abs(dropped).max()


def test_wordings_are_what_is_left_without_the_mean_over_a_picture(
    seen: Seen, splits: Splits
) -> None:
    prompts, states = splits.neutral["image"].fit, seen.fit["image"]
    for prompt, left, state in zip(prompts, seen.fit[WORDINGS], states, strict=True):
        alike = [x for p, x in zip(prompts, states, strict=True) if p.images == prompt.images]
        np.testing.assert_allclose(left, state - np.mean(alike, axis=0), atol=1e-3)
