"""Models that think: chat templates that open a thought or leave that to the model, and tiny models
that find one token likelier than any other, whatever is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny import FAMILIES
from tiny.templates import CHATML, Chat

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
