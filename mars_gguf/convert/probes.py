"""Neutral media prompts: what the shift, the spread and the gate of a medium are measured on.

Every kind of picture meets every form of prompt, because both decide where a harmless prompt lies;
and every number of still pictures meets both. A film is not several pictures: it has probes of its
own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from mars_gguf.convert.neutral import frames, neutral_images, read_images
from mars_gguf.convert.prompts import Prompt, neutral_prompts, read_entries, text_of
from mars_gguf.errors import MarsError
from mars_gguf.media.images import load_image

Pictures = tuple[Image.Image, ...]
FRAMES = 4
STILLS = (1, 2, 1, 3, 1, 4)  # pictures of a prompt, in turn


def neutral_probes(
    count: int, size: int, seed: int, media: str | PathLike[str] | None = None
) -> dict[str, list[Prompt]]:
    """About ``count`` neutral prompts with still pictures ("image", one to four, half of them with
    one) and half as many with films ("video", FRAMES frames), pictures of ``size`` x ``size``
    pixels, random by ``seed``.

    ``media``: the user's own harmless pictures: a directory, which becomes a third kind beside
    noise and drawn pictures, its films standing still; or a JSON Lines file (`paired_probes`),
    which is then used alone. Raises MarsError for files that cannot be used.
    """
    if media is not None and Path(media).suffix.lower() == ".jsonl":
        return paired_probes(media)
    own = read_images(media) if media is not None else []
    texts = neutral_prompts()
    n_kinds = 3 if own else 2
    n_stills, n_films = (max(8, wanted // n_kinds) for wanted in (count, count // 2))
    numbers = [STILLS[i // len(texts) % len(STILLS)] for i in range(n_stills)]
    stills: dict[str, list[Pictures]] = {}
    films: dict[str, list[Pictures]] = {}
    for kind in ("noise", "drawn"):
        stills[kind] = _dealt(neutral_images(kind, sum(numbers), size, seed), numbers)
        films[kind] = [tuple(frames(kind, FRAMES, size, seed + 1 + i)) for i in range(n_films)]
    if own:
        stills["own"] = _dealt(own, numbers)
        films["own"] = [(own[i % len(own)],) * FRAMES for i in range(n_films)]
    return {
        "image": _crossed(stills, texts, seed),
        "video": _crossed(films, texts, seed, film=True),
    }


def _dealt(pictures: Sequence[Image.Image], numbers: Sequence[int]) -> list[Pictures]:
    """The pictures in order, as many at a time as ``numbers`` say, from the first again at last."""
    deck = cycle(pictures)
    return [tuple(islice(deck, number)) for number in numbers]


def _crossed(
    kinds: Mapping[str, Sequence[Pictures]],
    prompts: Mapping[str, Sequence[str]],
    seed: int,
    *,
    film: bool = False,
) -> list[Prompt]:
    """The pictures of each prompt with a text; within each kind all forms in turn."""
    rng = random.Random(seed)
    shuffled = {form: rng.sample(texts, len(texts)) for form, texts in prompts.items()}
    forms = list(shuffled)
    result = []
    for kind, pictures in kinds.items():
        for i, images in enumerate(pictures):
            form, turn = forms[i % len(forms)], i // len(forms)
            text = shuffled[form][turn % len(shuffled[form])]
            result.append(Prompt(text, images, form, kind, film))
    return result


def paired_probes(path: str | PathLike[str]) -> dict[str, list[Prompt]]:
    """Neutral prompts from a JSON Lines file: "prompt", "image" (a name relative to the file, or a
    list of names: several still pictures) and optionally "form".

    "image" holds every line, and half of those with one picture again with one to three others of
    the file's pictures; "video" half of the lines with their first picture as a film that stands
    still, FRAMES frames. Which, is the same each time. Raises MarsError naming the line.
    """
    path = Path(path)
    loaded: dict[str, Image.Image] = {}
    lines = []
    for where, entry in read_entries(path, "prompt", "image"):
        text = text_of(entry, "prompt", where)
        form = text_of(entry, "form", where) if entry.get("form", "") != "" else ""
        pictures = []
        for name in _names(entry, where):
            if name not in loaded:
                try:
                    loaded[name] = load_image(path.parent / name)
                except MarsError as error:
                    raise MarsError(f"{where}: {error}") from error
            pictures.append(loaded[name])
        lines.append(Prompt(text, tuple(pictures), form, "own"))
    films = [
        Prompt(p.text, p.images[:1] * FRAMES, p.form, p.kind, film=True) for p in _half(lines, 0)
    ]
    return {"image": lines + _with_others(lines, list(loaded.values())), "video": films}


def _names(entry: Mapping[str, Any], where: str) -> list[str]:
    """The names of the pictures of a line."""
    names = entry["image"]
    if not isinstance(names, list):
        return [text_of(entry, "image", where)]
    if not names:
        raise MarsError(f"{where}: 'image' is [], expected a name, or a list of names")
    return [text_of({"image": name}, "image", where) for name in names]


def _half(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    return random.Random(seed).sample(prompts, k=(len(prompts) + 1) // 2)


def _with_others(lines: Sequence[Prompt], pictures: Sequence[Image.Image]) -> list[Prompt]:
    """Half of the prompts with one picture, each with one to three others after it, in turn."""
    rng = random.Random(1)
    more = []
    for i, p in enumerate(_half([p for p in lines if len(p.images) == 1], 1)):
        others = [picture for picture in pictures if picture is not p.images[0]]
        if chosen := rng.sample(others, min(1 + i % 3, len(others))):
            more.append(Prompt(p.text, (*p.images, *chosen), p.form, p.kind))
    return more
