"""Neutral media prompts: what the shift, the spread and the gate of a medium are measured on.

Every kind of picture meets every form of prompt, because both decide where a harmless prompt lies.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from PIL import Image

from mars_gguf.convert.neutral import frames, neutral_images, read_images
from mars_gguf.convert.prompts import Prompt, neutral_prompts, read_entries, text_of
from mars_gguf.errors import MarsError
from mars_gguf.media.images import load_image

Pictures = tuple[Image.Image, ...]
FRAMES = 4


def neutral_probes(
    count: int, size: int, seed: int, media: str | PathLike[str] | None = None
) -> dict[str, list[Prompt]]:
    """About ``count`` neutral prompts with one picture ("image") and half as many with several
    ("video", FRAMES frames), pictures of ``size`` x ``size`` pixels, random by ``seed``.

    ``media``: the user's own harmless pictures: a directory, which becomes a third kind beside
    noise and drawn pictures; or a JSON Lines file of {"prompt": ..., "image": ...} with names
    relative to it, which is then used alone. Raises MarsError for files that cannot be used.
    """
    if media is not None and Path(media).suffix.lower() == ".jsonl":
        return paired_probes(media)
    own = read_images(media) if media is not None else []
    probes: dict[str, list[Prompt]] = {}
    for modality, wanted in (("image", count), ("video", count // 2)):
        n_kinds = 3 if own else 2
        each = max(8, wanted // n_kinds)
        kinds: dict[str, list[Pictures]] = {}
        for kind in ("noise", "drawn"):
            if modality == "image":
                kinds[kind] = [(i,) for i in neutral_images(kind, each, size, seed)]
            else:
                kinds[kind] = [tuple(frames(kind, FRAMES, size, seed + 1 + i)) for i in range(each)]
        if own:
            n = 1 if modality == "image" else FRAMES
            kinds["own"] = [(own[i % len(own)],) * n for i in range(each)]
        probes[modality] = _crossed(kinds, neutral_prompts(), seed)
    return probes


def _crossed(
    kinds: Mapping[str, Sequence[Pictures]], prompts: Mapping[str, Sequence[str]], seed: int
) -> list[Prompt]:
    """Each picture with one prompt; within each kind all forms in turn."""
    rng = random.Random(seed)
    shuffled = {form: rng.sample(texts, len(texts)) for form, texts in prompts.items()}
    forms = list(shuffled)
    result = []
    for kind, pictures in kinds.items():
        for i, images in enumerate(pictures):
            form, turn = forms[i % len(forms)], i // len(forms)
            text = shuffled[form][turn % len(shuffled[form])]
            result.append(Prompt(text, images, form, kind))
    return result


def paired_probes(path: str | PathLike[str]) -> dict[str, list[Prompt]]:
    """Neutral prompts from a JSON Lines file: "prompt", "image" (a name relative to the file) and
    optionally "form". For "video" the picture becomes FRAMES equal frames, for half of the lines.

    Raises MarsError naming the line.
    """
    path = Path(path)
    pictures: dict[str, Image.Image] = {}
    singles = []
    for where, entry in read_entries(path, "prompt", "image"):
        text, name = text_of(entry, "prompt", where), text_of(entry, "image", where)
        form = text_of(entry, "form", where) if entry.get("form", "") != "" else ""
        if name not in pictures:
            try:
                pictures[name] = load_image(path.parent / name)
            except MarsError as error:
                raise MarsError(f"{where}: {error}") from error
        singles.append(Prompt(text, (pictures[name],), form, "own"))
    some = random.Random(0).sample(singles, k=(len(singles) + 1) // 2)
    videos = [Prompt(p.text, p.images * FRAMES, p.form, p.kind) for p in some]
    return {"image": singles, "video": videos}
