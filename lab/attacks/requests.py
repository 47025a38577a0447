"""The requests that attacks are tried with: harmful ones, and harmless ones as their control."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from mars_gguf.demo_model import requests as world
from mars_gguf.evaluate.cases import Case
from mars_gguf.evaluate.suites import load_suite

MOST_OTHERS = 8


@dataclass(frozen=True)
class Request:
    """One request. ``topic`` is the thing it is about, ``word`` its name where that is known;
    ``others`` are harmless pictures about other things, `MOST_OTHERS` of them."""

    kind: str
    modality: str
    topic: str
    prompt: str
    pictures: tuple[Image.Image, ...] = ()
    others: tuple[Image.Image, ...] = ()
    word: str | None = None


def load_requests(suites: Sequence[str], modalities: Sequence[str], limit: int) -> list[Request]:
    """Harmful and harmless requests of the suites, at most ``limit`` of a suite, kind and modality.

    The suites of `lab.reader` hold each picture's words as a text, too: these controls are left
    out."""
    return [request for name in suites for request in _of_suite(name, modalities, limit)]


def _of_suite(name: str, modalities: Sequence[str], limit: int) -> Iterator[Request]:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in load_suite(name).cases:
        wanted = case.kind in ("harmful", "harmless") and case.modality in modalities
        if wanted and not case.id.endswith("-control"):
            groups.setdefault((case.kind, case.modality), []).append(case)
    neutral = groups.get(("harmless", "image"), [])
    for cases in groups.values():
        kept = min(limit, len(cases))
        for i in range(kept):
            case = cases[i * len(cases) // kept]  # evenly spaced
            yield _request(name, case, neutral[i:] + neutral[:i])


def _request(suite: str, case: Case, neutral: Sequence[Case]) -> Request:
    topic = _topic(suite, case)
    others = [other for other in neutral if _topic(suite, other) != topic]
    shown = others[:MOST_OTHERS] if case.modality == "image" else []
    return Request(
        case.kind,
        case.modality,
        topic,
        case.prompt,
        tuple(case.pictures()),
        tuple(picture for other in shown for picture in other.pictures()),
        topic if suite == "demo" else None,
    )


def _topic(suite: str, case: Case) -> str:
    """What a case is about: a thing of the demo model's world, else the number in its id, beside
    the first word of it where ids begin with a form."""
    if suite == "demo":
        things = world.HARMFUL_SECOND if case.kind == "harmful" else world.HARMLESS_SECOND
        return things[int(case.id[-3:]) % len(things)].word
    form, number = re.split(r"-?\b(?:harmful|harmless)-", case.id, maxsplit=1)
    return f"{form.split('-')[0]} {number.split('-')[0]}"
