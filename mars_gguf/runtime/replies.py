"""A reply, followed token by token: where it stands, and where its answer begins.

The states, and what leads from one to the next (drawn in docs/ARCHITECTURE.md):

    prompt      nothing is sampled yet: the end of the context is judged before anything is
    thought     within a thought
    candidate   the answer, or a thought, begins with the next token that is not blank
    marker      it began with what may become the marker of a thought
    answer      the answer has begun; without thoughts, it does with the first token
    over        another prompt uses the context: the reply cannot go on

Thoughts are told by the texts of the tokens that are generated, never by what the prompt says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.reasoning import Markers
from mars_gguf.runtime.judging import NOTHING_APART, Apart, Steering, Verdict

State = Literal["prompt", "thought", "candidate", "marker", "answer", "over"]
Meaning = Literal["blank", "thought", "answer"]


@dataclass(frozen=True)
class Thoughts:
    """How the thoughts of one model are told.

    piece: the text of a token, special ones too. begun: the prompt ends within a thought. whole:
    the marker that begins a thought is one token, so that no other token begins it, and so is the
    one that ends it.
    """

    markers: Markers
    piece: Callable[[int], bytes]
    begun: bool
    whole: bool


def thoughts_of(llama: Llama, markers: Markers, *, begun: bool) -> Thoughts:
    """How the thoughts of ``llama``'s replies are told; ``begun``: the prompt ends within one."""
    vocab = lib.llama_model_get_vocab(llama.model)

    def piece(token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(vocab, token, buffer, size, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    whole = len(llama.tokenize(markers.open.encode(), add_bos=False, special=True)) == 1
    return Thoughts(markers, piece, begun, whole)


class Reply:
    """One reply, from its prompt on.

    thoughts: how its thoughts are told, None if it has none.
    apart: what was seen of the prompt with each of its pictures alone.
    steering: what steering did, None before the first token.
    last: the token that was sampled last, and the position it belongs to.
    doubt: the verdict on the state from which a ``marker`` began.
    answered: whether an answer has begun since the last thought did.
    after_thought: whether a thought has ended.
    in_step: whether `Llama.generate` is at its next token, so that what moves is drafts.
    unjudged: something was taken back in such a step, and nothing evaluated since.
    """

    def __init__(self, thoughts: Thoughts | None = None, apart: Apart = NOTHING_APART) -> None:
        self.state: State = "prompt"
        self.thoughts, self.apart = thoughts, apart
        self.steering: Steering | None = None
        self.last: tuple[int, int] | None = None
        self.doubt: Verdict | None = None
        self.answered = self.after_thought = self.in_step = self.unjudged = False
        markers = Markers("", "") if thoughts is None else thoughts.markers
        self._open, self._close = markers.open.encode(), markers.close.encode()
        self._text = b""  # since the state began; in a thought and an answer, the end of it

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context manager: within it `Llama.generate` comes to its next token."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def goes_on(self, tokens: list[int], position: int, *, drafts: bool) -> bool:
        """Whether ``tokens`` that are evaluated at ``position`` are the one that was sampled last,
        in a step with ``drafts`` behind it."""
        alone = len(tokens) == 1 or (drafts and self.in_step)
        return alone and self.last == (tokens[0], position)

    def by_hand(self) -> Reply:
        """The reply that goes on from here where the caller evaluates by hand, without thoughts;
        this one is over."""
        other = Reply()
        if self.state != "prompt":
            other.state = "answer"
        other.steering, other.last = self.steering, self.last
        self.state = "over"
        return other

    def record(self, steering: Steering) -> None:
        """Write down what was found; that a token was steered stays there."""
        known = self.steering
        if known is None or known.alpha == 0 or steering.alpha > 0:
            self.steering = steering

    # Thoughts ------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether the answer has yet to begin."""
        return self.state != "answer"

    @property
    def reads(self) -> bool:
        """Whether the answer may begin with the token after the next one: then the state of that
        next one is needed, which was not evaluated yet."""
        # One token may end the marker and begin the answer.
        if self.thoughts is None:
            return False
        if self.state == "thought":
            return self._closes(self._text)
        return self.state == "candidate" or (self.state == "answer" and self._goes_on(self._text))

    def begin(self) -> None:
        """Come from the prompt to the first token."""
        begun = self.thoughts is not None and self.thoughts.begun
        self._go("answer" if self.thoughts is None else "thought" if begun else "candidate", b"")

    def begins_answer(self, token: int) -> bool:
        """Whether the answer begins with ``token``, the next one, or begins anew after a marker
        within the answer."""
        if self.state == "answer":
            _, _, after = (self._text + self._piece(token)).partition(self._close)
            return self._goes_on(self._text) and bool(after.strip())
        return self.meaning(token) == "answer"

    def meaning(self, token: int) -> Meaning:
        """The part of the reply that ``token``, the next one, would belong to."""
        assert self.thoughts is not None
        piece = self._piece(token)
        text = (self._text + piece).lstrip()
        if self.state == "answer" or (self.state != "thought" and not text):
            return "answer" if self.state == "answer" else "blank"
        if self.state == "thought" or text.startswith(self._open):
            _, closed, after = text.removeprefix(self._open).partition(self._close)
            return "answer" if closed and after.strip() else "thought"
        first = self.thoughts.whole and self.state == "candidate"
        return "thought" if self._open.startswith(text) and not first else "answer"

    def take(self, token: int, *, over: bool = False) -> None:
        """Go on with ``token``, the next one. ``over``: the answer begins if no thought does."""
        meaning, text = self.meaning(token), self._text + self._piece(token)
        if self.state not in ("thought", "answer"):
            if not text.lstrip().startswith(self._open):
                if meaning == "answer" or (over and meaning == "blank"):
                    self._go("answer", b"")
                elif meaning == "thought":
                    self.answered = False
                    self._go("marker", text)
                return
            # The token that ends the marker may go on with the thought, and end that, too.
            text, self.answered = text.lstrip().removeprefix(self._open), False
            self._go("thought", b"")
        _, closed, after = text.partition(self._close)
        if closed:
            self.after_thought = True
            self._go("answer" if after.strip() else "candidate", b"")
        else:
            self._text = text[1 - len(self._close) :]

    def alone(self, tokens: list[int]) -> list[int]:
        """The tokens that can be evaluated at once, of one that was taken and a draft after it: one
        while the answer has yet to begin, and none by which it may begin anew."""
        if self.thoughts is None:
            return tokens
        if self.waits or self.reads:
            return tokens[:1]
        text, kept = self._text, tokens[:1]
        for token in tokens[1:]:
            text += self._piece(token)
            if self._close in text or self._goes_on(text):
                break
            kept.append(token)
        return kept

    def _go(self, state: State, text: bytes) -> None:
        self.state, self._text = state, text
        self.answered = self.answered or state == "answer"

    def _piece(self, token: int) -> bytes:
        assert self.thoughts is not None
        return self.thoughts.piece(token)

    def _closes(self, text: bytes) -> bool:
        """Whether ``text`` ends with a part of the marker that ends a thought."""
        return any(text.endswith(self._close[:n]) for n in range(1, len(self._close)))

    def _goes_on(self, text: bytes) -> bool:
        """Whether an answer may begin anew within the token after ``text``."""
        assert self.thoughts is not None
        return not self.thoughts.whole and self._closes(text)
