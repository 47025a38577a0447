"""Observes the state of a prompt's last token, and after looks: a few more tokens that follow the
prompt on a copy of its sequence, of which the last one's state is read.

Shapes: n prompts, V views (the last token of the prompt, and of each look), B blocks, d = n_embd.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mars_gguf.convert.extract_gguf import GgufExtractor, GgufSession
from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.prompts import Prompt
from mars_gguf.files import atomic
from mars_gguf.runtime.tap import LayerOutput

PROMPT = "prompt"
N_TOKENS = 8  # of replies: enough to tell a refusal
LOOKS = {
    "refuse": "The user asks me to help with something that is",
    "ask": "?Is that harmful, illegal or dangerous? Answer yes or no.",
}
"""The looks that are compared: text in the assistant's mouth; or, after "?", a further turn of the
user's behind a short one of the assistant's."""

Rows = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Looked:
    """What was seen of n prompts: ``states`` [n, V, B, d], and the first tokens of the replies."""

    states: Rows
    replies: list[str]


def suffix(extractor: GgufExtractor, text: str) -> list[int]:
    """Tokenizes a look as it stands behind a prompt. Raises ValueError for a chat template that
    writes earlier turns in another way than as the beginning of a prompt."""
    llama = extractor.llama
    if not text.startswith("?"):
        return llama.tokenize(text.encode(), add_bos=False, special=False)
    first: Any = [{"role": "user", "content": "Hello"}]
    before = llama.template.render(first).text
    further = [{"role": "assistant", "content": "Wait."}]
    further += [{"role": "user", "content": text[1:]}]
    rendered = llama.template.render(first + further).text
    if not rendered.startswith(before):
        raise ValueError("a further turn does not begin with the prompt in this template")
    return llama.tokenize(rendered[len(before) :].encode(), add_bos=False, special=True)


class LookingSession(GgufSession):
    """Some prompts, looked at: decoded up to their last tokens."""

    def look(self, blocks: Sequence[int], looks: Sequence[Sequence[int]]) -> Rows:
        """Reads the states [n, 1 + looks, B, d] of the last token of each prompt, and of each of
        the ``looks``, tokens that follow it."""
        n, n_embd = len(self.prompts), self.extractor.n_embd
        found = np.empty((n, 1 + len(looks), len(blocks), n_embd), np.float16)
        for view, tokens in enumerate([(), *looks]):
            found[:, view] = self._read(blocks, tokens)
        return found

    def _read(self, blocks: Sequence[int], tokens: Sequence[int]) -> Rows:
        n, decoder = len(self.prompts), self.extractor.decoder
        states = np.empty((n, len(blocks), self.extractor.n_embd), np.float16)

        def visit(output: LayerOutput) -> None:
            states[:, blocks.index(output.layer)] = output.read()[-n:]

        with decoder._copies(self.prompts) as numbers:
            before, last = [], []
            for prompt, number in zip(self.prompts, numbers, strict=True):
                *some, end = enumerate((prompt.tail[-1], *tokens), prompt.n_past)
                before += [(token, at, (number,), False) for at, token in some]
                last.append((end[1], end[0], (number,), True))
            decoder.text(before)
            with self._seeing(blocks, visit):
                decoder.text(last)
        return states


class LookingExtractor(GgufExtractor):
    """A model whose prompts are looked at."""

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], LookingSession]]:
        for indices, session in super().sessions(prompts):
            yield indices, LookingSession(self, session.prompts, session.n_cells)


def observe(
    extractor: LookingExtractor,
    sets: Mapping[str, Sequence[Prompt]],
    folder: Path,
    advance: Callable[[int], object],
) -> dict[str, Looked]:
    """Looks at ``sets`` of prompts, after the later 60 % of the blocks, and keeps what was seen in
    ``folder``, where it is not measured again."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = seen_blocks(extractor.n_layer)
    looks = [suffix(extractor, text) for text in LOOKS.values()]
    found = {}
    for name, prompts in sets.items():
        file = folder / f"{name}.npz"
        if not file.exists():
            shape = (len(prompts), 1 + len(looks), len(blocks), extractor.n_embd)
            states, replies = np.empty(shape, np.float16), [Opening(0, "")] * len(prompts)
            for indices, session in extractor.sessions(prompts):
                states[indices] = session.look(blocks, looks)
                if not name.startswith("fit"):
                    for i, reply in zip(indices, session.replies(N_TOKENS), strict=True):
                        replies[i] = reply
                advance(len(indices))
            said = json.dumps([reply.text for reply in replies])
            with atomic(file) as part, part.open("wb") as out:
                np.savez(out, states=states, replies=np.asarray(said))
        else:
            advance(len(prompts))
        with np.load(file) as kept:
            found[name] = Looked(kept["states"], json.loads(str(kept["replies"])))
    return found


def seen_blocks(n_layer: int) -> list[int]:
    """Lists the blocks that are read: the later 60 %."""
    return list(range(int(0.4 * n_layer), n_layer))
