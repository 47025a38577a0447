"""Makes neutral prompts with media, on which the shift, the spread and the gate of a medium are
measured.

A crossed design: every form of prompt meets every kind of picture, because both decide where a
harmless prompt lies. Pictures take turns at what stands before them (contexts) and at how many
stand together. A film is not several pictures: it has prompts of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from os import PathLike
from pathlib import Path

from PIL import Image

from mars_gguf.convert.neutral import KINDS, frames, neutral_images, read_images
from mars_gguf.convert.prompts import Preamble, Prompt, neutral_prompts, read_entries, text_of
from mars_gguf.convert.splits import NEUTRAL_SHARES, Split, every_second, split
from mars_gguf.errors import MarsError
from mars_gguf.media.images import load_image
from mars_gguf.modalities import IMAGE, VIDEO

Shown = tuple[Image.Image, ...]  # one picture, several, or the frames of a film
FRAMES = 4
STILLS = (1, 1, 2, 1, 3, 1)  # pictures of a prompt, in turn
FORMS = 4  # of prompts that one picture meets


def neutral_probes(
    number: int,
    size: int,
    seed: int,
    contexts: Sequence[Preamble] = (Preamble(),),
    borderline: Sequence[str] = (),
    media: str | PathLike[str] | None = None,
    *,
    alone: bool = False,
) -> dict[str, Split]:
    """Makes prompts with about ``number`` pictures or groups of them ("image") and with half as
    many films ("video", FRAMES frames), divided; each is asked about in FORMS forms.

    size, seed: pictures are drawn with ``size`` x ``size`` pixels, at random by ``seed``.
    borderline: prompts that are a form of their own.

    media: the user's own harmless pictures instead of drawn ones: a directory, each folder in it a
        kind, films standing still; or a JSON Lines file that pairs them with prompts
        (`paired_probes`): then these pictures are asked about in the package's forms, too, and
        drawn ones in the user's prompts, unless ``alone``.

    Raises MarsError for files that cannot be used.
    """
    texts = neutral_prompts() | ({"borderline": list(borderline)} if borderline else {})
    paired = is_paired(media)
    if media is not None and paired:
        probes = paired_probes(media, contexts, seed)
        if alone:
            return probes
        own = {}
    else:
        probes = {"image": Split([], [], []), "video": Split([], [], [])}
        own = read_images(media) if media is not None else {}
    n = number // len(own or KINDS)
    stills = own or {kind: neutral_images(kind, 2 * n, size, seed) for kind in KINDS}
    for k, share in enumerate(NEUTRAL_SHARES):
        forms = {form: split(some, NEUTRAL_SHARES, seed)[k] for form, some in texts.items()}
        wanted = max(2, round(share * n))
        shown: dict[str, list[Shown]] = {}
        films: dict[str, list[Shown]] = {}
        for kind, pictures in stills.items():
            part = split(pictures, NEUTRAL_SHARES, seed)[k]
            deck = cycle(part)
            shown[kind] = [tuple(islice(deck, n)) for n in islice(cycle(STILLS), wanted)]
            n_films = max(2, wanted // 2)
            if own:  # a folder of the user's may be called as a kind that is drawn
                films[kind] = [(picture,) * FRAMES for picture in part[:n_films]]
            else:
                films[kind] = _films(kind, n_films, size, seed + 1000 * k)
        for kinds, medium in ((shown, IMAGE.name), (films, VIDEO.name)):
            prompts = probes[medium][k]
            if paired:
                theirs = {"own": list(dict.fromkeys(p.text for p in prompts))}
                once = list({p.images[0].tobytes(): p.images for p in prompts}.values())
                asked = _crossed(kinds, theirs, contexts, seed, medium)
                prompts += [replace(p, own=True) for p in asked]
                kinds = {"own": once[:wanted]}
            prompts += _crossed(kinds, forms, contexts, seed, medium)
    return probes


def is_paired(media: str | PathLike[str] | None) -> bool:
    """Tells whether ``media`` names a file that pairs pictures with prompts."""
    return media is not None and Path(media).suffix.lower() == ".jsonl"


def _films(kind: str, number: int, size: int, seed: int) -> list[Shown]:
    """Draws so many films of a kind."""
    return [tuple(frames(kind, FRAMES, size, seed + i)) for i in range(1, number + 1)]


def _crossed(
    kinds: Mapping[str, Sequence[Shown]],
    prompts: Mapping[str, Sequence[str]],
    contexts: Sequence[Preamble],
    seed: int,
    medium: str,
) -> Iterator[Prompt]:
    """Pairs all that is shown with texts of FORMS forms each, which take turns: every second time
    without a context, else after the next of them."""
    rng = random.Random(seed)
    texts = {form: cycle(rng.sample(some, len(some))) for form, some in prompts.items()}
    forms, others = list(texts), cycle(contexts[1:] or contexts)
    for kind, shown in kinds.items():
        for i, pictures in enumerate(shown):
            # Not every second: the groups of several pictures would all be without.
            context = next(others) if i % 4 in (1, 2) else contexts[0]
            for k in range(min(FORMS, len(forms))):
                form = forms[(i * FORMS // 2 + i // len(STILLS) + k) % len(forms)]
                yield Prompt(next(texts[form]), pictures, form, kind, medium, context)


def paired_probes(
    path: str | PathLike[str], contexts: Sequence[Preamble] = (Preamble(),), seed: int = 0
) -> dict[str, Split]:
    """Reads neutral prompts from a JSON Lines file, and divides them by picture. A line holds
    "prompt", "image" (a name relative to the file, or a list of names: several still pictures) and
    optionally "form".

    "image" holds every line, and half of those with one picture again with one to three others of
    the same part; "video" half of the lines with their first picture as a film that stands still,
    FRAMES frames. Every second line stands after one of ``contexts``. Raises MarsError naming the
    line.
    """
    image, video = [], []
    for groups in split(_by_pictures(_lines(Path(path), contexts[0])), NEUTRAL_SHARES, seed):
        lines = [prompt for group in groups for prompt in group]
        stills = lines + _with_others(lines)
        films = [
            replace(p, images=p.images[:1] * FRAMES, medium=VIDEO.name) for p in _half(lines, 0)
        ]
        image.append(every_second(stills, contexts))
        video.append(every_second(films, contexts))
    return {"image": Split(*image), "video": Split(*video)}


def _by_pictures(lines: Iterable[Prompt]) -> list[list[Prompt]]:
    """Groups the prompts so that no two groups have a picture in common."""
    groups: list[tuple[set[int], list[Prompt]]] = []
    for prompt in lines:
        shown = set(map(id, prompt.images))
        joined = [group for group in groups if group[0] & shown]
        prompts = [p for group in joined for p in group[1]]
        for group in joined[1:]:
            groups.remove(group)
        merged = (shown.union(*(group[0] for group in joined)), [*prompts, prompt])
        if joined:
            groups[groups.index(joined[0])] = merged
        else:
            groups.append(merged)
    return [prompts for _, prompts in groups]


def _lines(path: Path, context: Preamble) -> Iterator[Prompt]:
    """Reads the prompt of every line; of one picture there is one image."""
    loaded: dict[str, Image.Image] = {}
    for where, entry in read_entries(path, "prompt", "image"):
        text = text_of(entry, "prompt", where)
        form = text_of(entry, "form", where) if entry.get("form", "") != "" else ""
        stated = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        names = [text_of({"image": name}, "image", where) for name in stated]
        if not names:
            raise MarsError(f"{where}: 'image' is [], expected a name, or a list of names")
        try:
            loaded |= {n: load_image(path.parent / n) for n in names if n not in loaded}
        except MarsError as error:
            raise MarsError(f"{where}: {error}") from error
        shown = tuple(loaded[n] for n in names)
        yield Prompt(text, shown, form, "own", context=context, own=True)


def _half(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    return random.Random(seed).sample(prompts, k=(len(prompts) + 1) // 2)


def _with_others(lines: Sequence[Prompt]) -> list[Prompt]:
    """Makes more of half of the prompts with one picture: one to three others after it, in turn."""
    rng = random.Random(1)
    pictures = list({id(p.images[0]): p.images[0] for p in lines}.values())
    more = []
    for i, p in enumerate(_half([p for p in lines if len(p.images) == 1], 1)):
        others = [picture for picture in pictures if picture is not p.images[0]]
        if chosen := rng.sample(others, min(1 + i % 3, len(others))):
            more.append(replace(p, images=(*p.images, *chosen)))
    return more
