"""Models that think before they answer: the markers of thoughts, and which token of a reply counts.

A thought stands between two markers, which templates and models write in a handful of ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from mars_gguf.errors import ModelError, PromptError

# off: the model answers at once. thought: what is judged and steered is the first token of the
# thought. answer: the first token of the answer, after the thought.
Reasoning = Literal["off", "thought", "answer"]
REASONINGS: tuple[Reasoning, ...] = get_args(Reasoning)
N_THOUGHT = 64  # tokens of a thought, after which the converter ends it


class Markers(NamedTuple):
    """The texts that a thought begins and ends with."""

    open: str
    close: str

    def begun_by(self, text: str) -> bool:
        """Whether ``text``, the end of a prompt, ends within a thought."""
        return text.rstrip().endswith(self.open)

    def ended_by(self, text: str) -> bool:
        """Whether ``text``, the end of a prompt, ends a thought."""
        return text.rstrip().endswith(self.close)


KNOWN = (
    Markers("<think>", "</think>"),  # Qwen, DeepSeek, GLM, MiMo, Kimi K2, Nemotron, ...
    Markers("<|channel>thought", "<channel|>"),  # Gemma 4
    Markers("◁think▷", "◁/think▷"),  # Kimi-VL
    Markers("[THINK]", "[/THINK]"),  # Magistral, Ministral
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A, R7B
    Markers("<seed:think>", "</seed:think>"),
    Markers("<mm:think>", "</mm:think>"),  # MiniMax M3
    Markers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
)


def markers_in(source: str) -> Markers | None:
    """The markers that a chat template writes, both of them; None if it does not."""
    found = (m for m in KNOWN if m.open in source and m.close in source)
    return next(found, None)


def split(text: str, markers: Markers | None, begun: bool) -> tuple[str, str | None]:
    """A reply's thought and its answer, without markers; the answer is None if the thought never
    ended. ``begun``: the prompt ends within the thought."""
    thoughts: list[str] = []
    while markers is not None:
        if not begun:
            stripped = text.lstrip()
            if not stripped.startswith(markers.open):
                break
            text = stripped.removeprefix(markers.open)
        thought, closed, text = text.partition(markers.close)
        thoughts.append(thought)
        if not closed:
            return "\n".join(thoughts), None
        begun = False
    return "\n".join(thoughts), text


def said(text: str) -> str:
    """The part of an assistant's earlier reply that chat templates show: not what it thought."""
    ends = (text.rfind(m.close) + len(m.close) for m in KNOWN if m.close in text)
    after = text[max(ends, default=0) :].strip()
    return "" if any(after.startswith(m.open) for m in KNOWN) else after


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
