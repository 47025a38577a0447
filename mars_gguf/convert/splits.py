"""Divides the prompts of a conversion in three parts, disjoint by prompt and by picture.

Centroids, read-out and shifts are fitted on one, block and trust limit are selected on another, and
the gate is certified on the last. What is promised has chosen nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle
from typing import NamedTuple, TypeVar

from mars_gguf.convert.prompts import ContrastPrompts, Preamble, Prompt, require_enough
from mars_gguf.errors import MarsError

T = TypeVar("T")

CONTRAST_SHARES = 0.5, 0.2, 0.3
NEUTRAL_SHARES = 0.3, 0.2, 0.5  # most where a small share has to be bounded


class Split(NamedTuple):
    """One set of prompts, divided."""

    fit: list[Prompt]
    select: list[Prompt]
    certify: list[Prompt]


@dataclass(frozen=True)
class Splits:
    """All prompts of a conversion, divided: harmful and harmless text, and by modality everything
    that is harmless, that text among it."""

    harmful: Split
    harmless: Split
    neutral: dict[str, Split]

    def __len__(self) -> int:
        """The number of different prompts."""
        sets = self.harmful, *self.neutral.values(), [self.harmless.fit]
        return len({id(prompt) for split in sets for part in split for prompt in part})


def split_prompts(
    contrast: ContrastPrompts,
    media: Mapping[str, Split],
    contexts: Sequence[Preamble],
    seed: int,
) -> Splits:
    """Divides the text prompts, and joins them with ``media``, which are divided already.

    Contrast sets of equal length are split at the same positions, so that matched pairs stay
    together. Neutral text is the harmless side of the contrast and the neutral prompts of the set.
    All stands after the first of ``contexts`` (none, or a system prompt), every second neutral
    prompt after one of the others, which take turns. Raises MarsError for sets that are too small.
    """
    require_enough(contrast.harmful, "harmful prompts")
    require_enough(contrast.harmless, "harmless prompts")

    def divided(form: str, texts: Sequence[str], shares: Sequence[float]) -> Split:
        wordings, before = contrast.wordings, contexts[0]
        prompts = [
            Prompt(text, form=form, kind="text", context=before, wording=wordings.get(text, ""))
            for text in texts
        ]
        return Split(*split(prompts, shares, seed))

    harmful = divided("harmful", contrast.harmful, CONTRAST_SHARES)
    harmless = divided("matched", contrast.harmless, CONTRAST_SHARES)
    others = [divided(kind, some, NEUTRAL_SHARES) for kind, some in contrast.neutral.items()]
    parts = zip(harmless, *others, strict=True)
    neutral = [every_second(list(chain.from_iterable(some)), contexts) for some in parts]
    return Splits(harmful, harmless, {"text": Split(*neutral), **media})


def every_second(prompts: Sequence[Prompt], contexts: Sequence[Preamble]) -> list[Prompt]:
    """Puts every second prompt after the next of ``contexts`` but the first."""
    if len(contexts) < 2:
        return list(prompts)
    before = cycle(contexts[1:])
    return [replace(p, context=next(before)) if i % 2 else p for i, p in enumerate(prompts)]


def split(items: Sequence[T], shares: Sequence[float], seed: int) -> list[list[T]]:
    """Divides ``items`` into parts with these ``shares``, which sum to 1: each part in their order,
    and of at least one item.

    Which positions a part gets depends on ``len(items)``, ``shares`` and ``seed`` alone, so
    parallel lists split alike. Raises MarsError for fewer items than parts.
    """
    n, parts = len(items), len(shares)
    if n < parts:
        raise MarsError(
            f"cannot split {n} prompts or pictures in {parts}: expected at least {parts}"
        )
    # A hash, because the random generators of Python and NumPy may change between versions.
    ranked = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())
    found, start, reached = [], 0, 0.0
    for k, share in enumerate(shares):
        reached += share
        stop = max(start + 1, min(round(reached * n), n - (parts - 1 - k)))
        found.append([items[i] for i in sorted(ranked[start:stop])])
        start = stop
    return found
