"""Observes what the alternatives of `lab.reader.tried` are computed from: hidden states of the
prompts that a conversion measures with, and of requests, in several views of each prompt.

Shapes: n prompts, L blocks, d = n_embd; states are [n, L, views, d].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from llama_cpp import llama_cpp as lib
from PIL import Image

from mars_gguf.convert.calibration import accepted
from mars_gguf.convert.extract_gguf import GgufExtractor, Session
from mars_gguf.convert.extractor import Observations
from mars_gguf.convert.pipeline import REPLIES
from mars_gguf.convert.prompts import Prompt, Rows
from mars_gguf.convert.refusals import N_TOKENS, Refusals
from mars_gguf.convert.splits import Splits
from mars_gguf.errors import ModelError
from mars_gguf.runtime.tap import LayerOutput

TAIL = 5  # tokens: those that the chat template of Qwen ends with

# The last token; the mean of the last TAIL; and where pictures are judged, the last token of the
# same prompt without them and with blank ones.
LAST, MEAN, DROPPED, BLANK = range(4)

WORDINGS = "wordings"

Name = tuple[str, str]
"""Form and kind of a request."""


class TailSession(Session):
    """Some prompts, of which the last TAIL tokens are observed."""

    def observe(self) -> tuple[Rows, Rows]:
        """Returns states [n, n_layer, 2, d], LAST and MEAN, and logits of the first token [n,
        n_vocab]."""
        n, n_layer = len(self.prompts), self.extractor.n_layer
        states = np.empty((n, n_layer, 2, self.extractor.n_embd), np.float32)

        def visit(output: LayerOutput) -> None:
            rows = output.read().reshape(n, TAIL, output.n_embd)
            states[:, output.layer, LAST], states[:, output.layer, MEAN] = rows[:, -1], rows.mean(1)

        decoder = self.extractor.decoder
        with decoder._copies(self.prompts) as numbers, self._seeing(range(n_layer), visit):
            entries = []
            for prompt, number in zip(self.prompts, numbers, strict=True):
                start = prompt.n_past + 1 - TAIL
                if not lib.llama_memory_seq_rm(decoder.memory, number, start, -1):
                    raise ModelError("the memory of this model cannot be rewound")
                for position, token in enumerate(prompt.tail[-TAIL:], start):
                    entries.append((token, position, (number,), True))
            decoder.text(entries)
            return states, decoder._logits(len(entries))[TAIL - 1 :: TAIL]


class TailExtractor(GgufExtractor):
    """A model, of prompts to which the last TAIL tokens are observed."""

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Session]]:
        for indices, session in super().sessions(prompts):
            yield indices, TailSession(self, session.prompts, session.n_cells)


class See(Protocol):
    """Observes prompts as `mars_gguf.convert.extractor.observe` does."""

    def __call__(self, prompts: Sequence[Prompt], *, n_tokens: int = 0) -> Observations: ...


@dataclass(frozen=True)
class Seen:
    """The states of what a conversion measures with, and of requests.

    fit: states of the part that fits: of "harmful" and "harmless" text, and by modality of all that
        is neutral; as WORDINGS, those of pictures less the mean over prompts with the same ones.
    strata: of what is neutral, with media.
    beyond: harmful text of the part that selects.
    certify: of the part that certifies, by modality, the neutral prompts that the model answers.
    requests: with their replies.
    """

    fit: dict[str, Rows]
    strata: dict[str, list[str]]
    beyond: Observations
    certify: dict[str, Observations]
    requests: dict[Name, Observations]
    refusals: Refusals


def measure(see: See, splits: Splits, requests: Mapping[Name, Sequence[Prompt]]) -> Seen:
    """Observes what a conversion with ``splits`` does, and ``requests``."""
    fit, replies = {}, []
    for side, prompts in (("harmful", splits.harmful.fit), ("harmless", splits.harmless.fit)):
        asked = see(prompts[:REPLIES], n_tokens=N_TOKENS)
        replies.append(asked.replies)
        rest = prompts[REPLIES:]
        fit[side] = np.concatenate([asked.states, *([see(rest).states] if rest else [])])
    refusals = Refusals.of(*replies)
    plain = set(map(id, splits.harmless.fit))
    text, media = splits.neutral["text"], {m: x for m, x in splits.neutral.items() if m != "text"}
    further = [p for p in text.fit if id(p) not in plain]
    fit["text"] = np.concatenate([fit["harmless"], *([see(further).states] if further else [])])
    fit |= {m: see(split.fit).states for m, split in media.items()}
    if "image" in media:
        fit[WORDINGS] = less_their_pictures(fit["image"], media["image"].fit)
    strata = {m: [p.stratum for p in split.fit] for m, split in media.items()}
    beyond = see(splits.harmful.select)
    certify = accepted({m: see(x.certify) for m, x in splits.neutral.items()}, refusals)
    certify = {m: with_references(see, seen) for m, seen in certify.items()}
    answers = {
        name: with_references(see, see(some, n_tokens=N_TOKENS)) for name, some in requests.items()
    }
    return Seen(fit, strata, beyond, certify, answers, refusals)


def less_their_pictures(states: Rows, prompts: Sequence[Prompt]) -> Rows:
    """Subtracts from the states of prompts the mean over those with the same pictures: what is left
    is what their wording does."""
    shown = [tuple(map(id, p.images)) for p in prompts]
    rows = [[i for i, other in enumerate(shown) if other == one] for one in shown]
    return states - np.stack([states[some].mean(0) for some in rows])


def with_references(see: See, seen: Observations) -> Observations:
    """Adds the views DROPPED and BLANK, where pictures were shown."""
    if not any(p.images for p in seen.prompts):
        return seen
    blank = Image.new("RGB", seen.prompts[0].images[0].size, "white")
    views = [seen.states]
    for shown in ((), (blank,)):
        others = [replace(p, images=shown * len(p.images)) for p in seen.prompts]
        views.append(_each_once(see, others)[:, :, [LAST]])
    return replace(seen, states=np.concatenate(views, axis=2))


def _each_once(see: See, prompts: Sequence[Prompt]) -> Rows:
    """Observes the states of prompts, many of which are the same."""
    keys = [(p.text, len(p.images), str(p.context.messages)) for p in prompts]
    different = dict(zip(keys, prompts, strict=True))
    states = see(list(different.values())).states
    return np.asarray(states[[list(different).index(key) for key in keys]])
