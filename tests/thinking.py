"""Models that think: chat templates that open a thought or leave that to the model, and tiny models
that find one token likelier than any other, whatever is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tiny import FAMILIES
from tiny.templates import CHATML, Chat

Logits = npt.NDArray[np.float32]

SHOWS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)
ALWAYS = SHOWS + "{{ '<|im_start|>assistant\n<think>' }}"
BARE = (
    SHOWS + "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}"
    "{{ '<think></think>' }}{% endif %}"
)


def write_likely(
    folder: Path, token: str, template: str, markers: tuple[str, ...] = ("<think>", "</think>")
) -> tuple[str, str]:
    """Write a model to which ``token`` is the likeliest, always; ``markers`` are tokens of their
    own. Paths of it and of its mmproj."""
    chat = Chat(template, "both", "<|im_end|>", (*CHATML, *markers))
    family = replace(FAMILIES["internvl-qwen2"], chat=chat)
    model, mmproj = family.build(chat)
    bias = np.zeros(len(model.tokens), np.float32)
    bias[model.tokens.index(token)] = 30
    model.tensors["output.bias"] = bias
    return str(model.write(folder / "model.gguf")), str(mmproj.write(folder / "mmproj.gguf"))


class Script:
    """A logits processor that dictates how a reply begins, and keeps the logits of every token.
    ``drafts``: of every call, for then the context holds more than was said."""

    def __init__(self, forced: Sequence[int], *, drafts: bool = False) -> None:
        self.forced, self.rows, self.drafts = list(forced), list[Logits](), drafts
        self.start: int | None = None

    def __call__(self, ids: npt.NDArray[np.intc], scores: Logits) -> Logits:
        self.start = len(ids) if self.start is None else self.start
        at = len(self.rows) if self.drafts else len(ids) - self.start
        del self.rows[at:]
        self.rows.append(scores.copy())
        if at < len(self.forced):
            scores = np.full_like(scores, -np.inf)
            scores[self.forced[at]] = 0
        return scores
