"""The modalities of a prompt: the one table that every room asks.

The runtime decides a prompt's modality by the media in its context: text alone is "text", still
pictures (one or several) are "image", the frames of a film are "video".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple


class Modality(NamedTuple):
    """One row of the table.

    name: as vector files, reports and options write it.
    part: the type of the part of a chat message that shows it.
    unit: what a person counts of it.
    fallback: the modality whose measurements judge it where a vector has none of its own.
    """

    name: str
    part: str
    unit: str
    fallback: str | None = None


TEXT = Modality("text", "text", "text")
IMAGE = Modality("image", "image_url", "picture")
VIDEO = Modality("video", "video", "film", fallback="image")

TABLE = (TEXT, IMAGE, VIDEO)  # a prompt that shows several is of the last of them
MODALITIES = tuple(modality.name for modality in TABLE)
MEDIA = tuple(modality.name for modality in TABLE if modality is not TEXT)
BY_NAME = {modality.name: modality for modality in TABLE}
BY_PART = {modality.part: modality for modality in TABLE}


def of(shown: Iterable[str]) -> str:
    """The modality of a context that shows media of the modalities ``shown``."""
    return max(shown, key=MODALITIES.index, default=TEXT.name)


def measured_as(modality: str, measured: Collection[str]) -> str | None:
    """The modality among ``measured`` whose measurements judge ``modality``: itself, else what it
    falls back to; None if neither was measured."""
    if modality in measured:
        return modality
    fallback = BY_NAME[modality].fallback
    return None if fallback is None else measured_as(fallback, measured)
