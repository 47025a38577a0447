"""Which prompts measure what: centroids, read-out and shifts are fitted on some, and what is chosen
and promised by them is checked on others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from mars_gguf.convert.prompts import ContrastPrompts, Prompt, require_enough
from mars_gguf.errors import MarsError

T = TypeVar("T")


class Parts(NamedTuple):
    """One set of prompts, split."""

    fit: list[Prompt]
    check: list[Prompt]


@dataclass(frozen=True)
class Splits:
    """All prompts of a conversion, split: harmful and harmless text, and by modality the neutral
    prompts with media."""

    harmful: Parts
    harmless: Parts
    media: dict[str, Parts]

    def __len__(self) -> int:
        sets = (self.harmful, self.harmless, *self.media.values())
        return sum(len(part) for parts in sets for part in parts)


def split_prompts(
    contrast: ContrastPrompts, neutral: Mapping[str, Sequence[Prompt]], held_out: float, seed: int
) -> Splits:
    """Split contrast prompts, a share ``held_out`` of them to be checked on, and in halves the
    neutral prompts of each modality.

    Contrast sets of equal length are split at the same positions, so that matched pairs stay
    together. Raises MarsError for sets that are too small.
    """
    require_enough(contrast.harmful, "harmful prompts")
    require_enough(contrast.harmless, "harmless prompts")
    media = {m: halves(probes, seed) for m, probes in neutral.items()}
    for m, parts in media.items():
        for part in parts:
            require_enough([p.text for p in part], f"each half of the neutral prompts ({m})")
    harmful, harmless = (
        Parts(*map(_text, split(side, held_out, seed)))
        for side in (contrast.harmful, contrast.harmless)
    )
    return Splits(harmful, harmless, media)


def _text(prompts: Sequence[str]) -> list[Prompt]:
    return [Prompt(text, form="text", kind="text") for text in prompts]


def halves(probes: Sequence[Prompt], seed: int) -> Parts:
    """Split within every stratum, so that both halves hold all forms and kinds."""
    strata: dict[str, list[Prompt]] = {}
    for probe in probes:
        strata.setdefault(probe.stratum, []).append(probe)
    lonely = [stratum[0] for stratum in strata.values() if len(stratum) == 1]
    groups = [stratum for stratum in strata.values() if len(stratum) > 1]
    groups += [lonely] if len(lonely) > 1 else []
    parts = [split(group, 0.5, seed) for group in groups]
    return Parts([p for a, _ in parts for p in a], [p for _, b in parts for p in b])


def split(items: Sequence[T], held_out: float, seed: int) -> tuple[list[T], list[T]]:
    """Split into (train, held out), each at least one item, both in the order of `items`.

    `held_out` is a share, 0 < held_out < 1. Which positions are held out depends on
    ``len(items)``, `held_out` and `seed` alone, so parallel lists split alike.
    """
    if not 0 < held_out < 1:
        raise MarsError(f"held-out share: found {held_out}, expected more than 0 and less than 1")
    if len(items) < 2:
        raise MarsError(f"cannot hold out from {len(items)} prompts; expected at least 2")
    count = min(max(1, round(held_out * len(items))), len(items) - 1)
    # A hash, because the random generators of Python and NumPy may change between versions.
    ranked = sorted(
        range(len(items)), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest()
    )
    held = set(ranked[:count])
    return (
        [item for i, item in enumerate(items) if i not in held],
        [item for i, item in enumerate(items) if i in held],
    )
