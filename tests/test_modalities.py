"""The table of modalities: what a context is of, and what judges it."""

from __future__ import annotations

import pytest

from mars_gguf.modalities import MEDIA, MODALITIES, measured_as, of


def test_a_context_is_of_the_last_modality_that_it_shows() -> None:
    assert of([]) == "text" == MODALITIES[0] and MODALITIES[1:] == MEDIA
    assert of(["image", "image"]) == "image"
    assert of(["video", "image"]) == "video"


@pytest.mark.parametrize(
    ("modality", "measured", "judged_as"),
    [
        ("video", {"text", "image", "video"}, "video"),
        ("video", {"text", "image"}, "image"),
        ("video", {"text"}, None),
        ("image", {"text", "video"}, None),
    ],
)
def test_what_was_not_measured_is_judged_by_its_fallback(
    modality: str, measured: set[str], judged_as: str | None
) -> None:
    assert measured_as(modality, measured) == judged_as
