"""A model of numpy alone, to convert in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mars_gguf.convert.prompts import ContrastPrompts, Prompt, Push, Rows
from mars_gguf.vectors import ModelFingerprint


@dataclass
class Toy:
    """A model whose states say what a prompt is and whose first token is "sorry" or "sure": "sorry"
    to every ``stride``-th prompt, and to all once steered at a block in ``pliable``."""

    strides: dict[str, int]
    pliable: tuple[int, ...] = ()
    n_layer: int = 6
    n_embd: int = 4
    fingerprint = ModelFingerprint("toy", "", 6, 4, "", "", "")

    def sessions(
        self, prompts: Sequence[Prompt], *, again: Collection[int] = ()
    ) -> Iterator[tuple[list[int], ToySession]]:
        for i in range(0, len(prompts), 5):
            part = prompts[i : i + 5]
            yield list(range(i, i + len(part))), ToySession(self, part)

    def contrast(self) -> ContrastPrompts:
        return ContrastPrompts(*([f"{side} {i}" for i in range(80)] for side in self.strides))


@dataclass
class ToySession:
    model: Toy
    prompts: Sequence[Prompt]

    def observe(self) -> tuple[Rows, Rows]:
        states = [
            np.random.default_rng(hash_of(p.text)).normal(
                3 * p.text.startswith("harmful") + np.zeros((6, 4)), 0.5
            )
            for p in self.prompts
        ]
        return np.asarray(states, np.float32), self.logits([self.refuses(p) for p in self.prompts])

    def steered_each(self, pushes: Sequence[Push]) -> Iterator[Rows]:
        for layer, additions in pushes:
            forced = layer in self.model.pliable
            assert (np.linalg.norm(additions, axis=-1) > 0).all()
            yield self.logits([forced or self.refuses(p) for p in self.prompts])

    def refuses(self, prompt: Prompt) -> bool:
        side, number = prompt.text.split()
        return int(number) % self.model.strides[side] == 0

    @staticmethod
    def logits(refuses: Sequence[bool]) -> Rows:
        return np.asarray([[9.0, 0.0] if r else [0.0, 9.0] for r in refuses], np.float32)


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
