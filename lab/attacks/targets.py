"""Chooses the requests that attacks are tried with: harmful ones, and harmless ones as their
control."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from mars_gguf.evaluate.cases import Case, by_sort, evenly
from mars_gguf.evaluate.suites import load_suite

MOST_OTHERS = 8


@dataclass(frozen=True)
class Target:
    """One request.

    topic: what it is about; requests about one thing have one topic.
    others: harmless pictures about other things, `MOST_OTHERS` of them.
    word: the name of the thing, where that is known.
    """

    kind: str
    modality: str
    topic: str
    prompt: str
    pictures: tuple[Image.Image, ...] = ()
    others: tuple[Image.Image, ...] = ()
    word: str | None = None


def load_targets(suites: Sequence[str], modalities: Sequence[str], limit: int) -> list[Target]:
    """Loads harmful and harmless requests of the suites, at most ``limit`` of a suite, kind and
    modality.

    The suites of `lab.reader` hold each picture's words as a text, too: these controls are left
    out."""
    return [target for name in suites for target in _of_suite(name, modalities, limit)]


def _of_suite(name: str, modalities: Sequence[str], limit: int) -> Iterator[Target]:
    groups = by_sort(
        case
        for case in load_suite(name).cases
        if case.kind in ("harmful", "harmless") and case.modality in modalities
        if not case.id.endswith("-control")
    )
    neutral = groups.get(("harmless", "image"), [])
    for cases in groups.values():
        for i in evenly(range(len(cases)), limit):
            word = cases[i].group.removeprefix("thing-") if name == "demo" else None
            yield _target(cases[i], neutral[i:] + neutral[:i], word)


def _target(case: Case, neutral: Sequence[Case], word: str | None) -> Target:
    others = [other for other in neutral if other.group != case.group]
    shown = others[:MOST_OTHERS] if case.modality == "image" else []
    return Target(
        case.kind,
        case.modality,
        case.group,
        case.prompt,
        tuple(case.pictures()),
        tuple(picture for other in shown for picture in other.pictures()),
        word,
    )
