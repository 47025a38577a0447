"""How a chat template lets its model think: the markers that it writes, and the variables that
switch thoughts on and off."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.reasoning import KNOWN, Markers, Reasoning, markers_in

# The variables by which templates are told to let the model think, and what they are if it shall
# not, or shall.
SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "reasoning": (False, True),
    "thinking_option": ("off", "on"),
    "thinking_mode": ("disabled", "enabled"),
}


@dataclass(frozen=True)
class Thinking:
    """How a template that knows thoughts writes them.

    default: how it lets the model begin if it is told nothing. off, on: the variables that tell it.
    switchable: whether those change the end of a prompt.
    """

    markers: Markers
    default: Reasoning
    off: dict[str, Any]
    on: dict[str, Any]
    switchable: bool

    @classmethod
    def learnt(cls, source: str, end: Callable[[dict[str, Any]], str]) -> Thinking | None:
        """How the template ``source`` does it, by what it writes behind a question under given
        variables (``end``); None if it knows no thoughts, or shows nothing."""
        if not any(m.open in source or m.close in source for m in KNOWN):
            return None
        off, on = (
            {name: v[to] for name, v in SWITCHES.items() if re.search(rf"\b{name}\b", source)}
            for to in (False, True)
        )
        try:
            plain, without, with_ = (end(variables) for variables in ({}, off, on))
        except (ModelError, PromptError):
            return None  # it shows nothing: said when it is used
        ends = (plain, without, with_)
        written = (m for m in KNOWN for e in ends if m.begun_by(e) or m.ended_by(e))
        markers = next(written, None) or markers_in(source)
        if markers is None:
            return None
        asked_for = plain == without and (with_ != without or markers.ended_by(plain))
        return cls(markers, "off" if asked_for else "answer", off, on, with_ != without)

    def ended(self, prompt: str, closing: str) -> str:
        """``prompt`` as it is for a model that shall not think: the thought that it would begin is
        ended by ``closing``."""
        if self.markers.ended_by(prompt):
            return prompt
        if self.markers.begun_by(prompt):
            return prompt + closing
        return prompt if self.switchable else prompt + self.markers.open + closing
