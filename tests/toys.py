"""A model of numpy alone, to convert in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.pipeline import Measurement, measure_vector
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import ContrastPrompts, Preamble, Prompt, Push, Rows
from mars_gguf.vectors import ModelFingerprint

N_LAYER, N_EMBD = 6, 4
REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure, here is how it is done."
SORRY, SURE = 0, 1
FINGERPRINT = ModelFingerprint("toy", "", N_LAYER, N_EMBD, "", "", "")


@dataclass(frozen=True)
class Toy:
    """A model whose states say what a prompt is, "SIDE NUMBER": harmful ones lie farther from all
    others the later the block.

    refuses: the share of each side's prompts that it refuses by itself.
    pliable: blocks where a push longer than this many units of h makes it refuse everything.
    moved: prompts whose states lie elsewhere, by so much in every entry.
    unwritten: names of contexts that its chat template does not write.
    refusal, forced: what it says when it refuses, and when it is pushed, after the same token.
    log: the prompts that it was observed on, so far; after ``at_most`` somebody presses Ctrl-C.
    """

    refuses: Mapping[str, float]
    pliable: Mapping[int, float] = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    unwritten: Sequence[str] = ()
    refusal: str = REFUSAL
    forced: str = REFUSAL
    log: list[Prompt] = field(default_factory=list)
    at_most: int = 10**9
    n_layer: int = N_LAYER
    n_embd: int = N_EMBD
    fingerprint: ModelFingerprint = FINGERPRINT
    answers_later: bool = False

    def takes(self, context: Preamble) -> bool:
        return context.name not in self.unwritten

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], ToySession]]:
        """Of five prompts at most, from the last on: in another order than they came."""
        for stop in range(len(prompts), 0, -5):
            indices = list(range(max(0, stop - 5), stop))
            yield indices, ToySession(self, [prompts[i] for i in indices])

    def state(self, prompt: Prompt) -> Rows:
        assert self.takes(prompt.context)
        seed = f"{prompt.context.name}, {prompt.modality}: {prompt.text}"
        noise = np.random.default_rng(hash_of(seed)).normal(size=(N_LAYER, N_EMBD)) / 2
        harm = prompt.text.startswith("harmful") * (1 + np.arange(N_LAYER)[:, None])
        medium = 7 * np.eye(N_EMBD)[0] * (prompt.modality != "text")
        return np.asarray(noise + harm + medium + self.moved.get(prompt.text, 0), np.float32)

    def refused(self, prompt: Prompt) -> bool:
        side, number = prompt.text.split()
        return int(number) * 37 % 100 < 100 * self.refuses.get(side, 0)

    def reply(self, prompt: Prompt) -> Opening:
        return Opening(SORRY, self.refusal) if self.refused(prompt) else Opening(SURE, ANSWER)


@dataclass
class ToySession:
    model: Toy
    prompts: list[Prompt]

    def observe(self) -> tuple[Rows, Rows]:
        if len(self.model.log) >= self.model.at_most:
            raise KeyboardInterrupt
        self.model.log.extend(self.prompts)
        tokens = [self.model.reply(p).token for p in self.prompts]
        states = np.stack([self.model.state(p) for p in self.prompts])
        return states, 9 * np.eye(2, dtype=np.float32)[tokens]

    def replies(self, n_tokens: int) -> list[Opening]:
        return [self.model.reply(p) for p in self.prompts]

    def steered_replies(self, pushes: Sequence[Push], n_tokens: int) -> Iterator[list[Opening]]:
        for layer, additions in pushes:
            least = self.model.pliable.get(layer, np.inf)
            yield [
                Opening(SORRY, self.model.forced) if np.linalg.norm(push) > least else reply
                for push, reply in zip(additions, self.replies(n_tokens), strict=True)
            ]


def toy_contrast(n: int = 200) -> ContrastPrompts:
    """Prompts to convert a toy with, half as many of them borderline."""
    sides = {name: [f"{name} {i}" for i in range(n)] for name in ("harmful", "harmless")}
    return ContrastPrompts(**sides, neutral={"borderline": [f"odd {i}" for i in range(n // 2)]})


def toy_measurement(**source: str) -> Measurement:
    """A measurement of a toy that refuses, on text alone."""
    sets = PromptSets(toy_contrast())
    toy, told = Toy({"harmful": 0.6}, pliable={2: 0.0}), {"backend": "toy"} | source
    return measure_vector(toy, sets, Calibration(), source=told, progress=False)


def hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
