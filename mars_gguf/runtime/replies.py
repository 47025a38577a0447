"""A reply, followed token by token: where it stands, and where its answer begins.

The states:

    prompt      nothing is sampled yet: the end of the context is judged before anything is
    thought     within a thought
    candidate   the answer, or a thought, begins with the next token that is not blank
    marker      it began with what may become the marker of a thought
    answer      the answer has begun; without thoughts, it does with the first token
    over        another prompt uses the context: the reply cannot go on

TABLE says what leads from one to the next; docs/ARCHITECTURE.md shows it. Thoughts are told by the
texts of the tokens that are generated, never by what the prompt says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.reasoning import Markers
from mars_gguf.runtime.judging import NOT_ISOLATED, Isolated, Steering, Verdict

State = Literal["prompt", "thought", "candidate", "marker", "answer", "over"]
# In the text of a reply: nothing but blanks; what may become the marker of a thought; that marker;
# the one that ends a thought; or anything else. And: a prompt is evaluated; another reply begins.
Event = Literal["blank", "marker", "open", "close", "text", "prompt", "overtaken"]
# Judge the state that the answer comes from: the one before this token, of a marker the one before
# that. A thought begins, so that no answer has; a thought has ended.
Action = Literal["judge", "begin thought", "end thought"]
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)


class Transition(NamedTuple):
    """The next state, and what is done on the way."""

    next: State
    action: Action | None = None


_THOUGHT, _CLOSED = Transition("thought", "begin thought"), Transition("candidate", "end thought")
_ANSWER = Transition("answer", "judge")


def _from(otherwise: Transition, events: Mapping[Event, Transition]) -> Mapping[Event, Transition]:
    """The transitions from one state, by all events."""
    always: dict[Event, Transition] = {
        "prompt": Transition("prompt"),
        "overtaken": Transition("over"),
    }
    return dict.fromkeys(EVENTS, otherwise) | always | dict(events)


TABLE: Mapping[State, Mapping[Event, Transition]] = {
    "prompt": _from(_ANSWER, {}),
    "thought": _from(Transition("thought"), {"close": _CLOSED, "prompt": Transition("thought")}),
    "candidate": _from(
        _ANSWER,
        {
            "blank": Transition("candidate"),
            "marker": Transition("marker", "begin thought"),
            "open": _THOUGHT,
            "prompt": Transition("candidate"),
        },
    ),
    "marker": _from(_ANSWER, {"marker": Transition("marker"), "open": _THOUGHT}),
    "answer": _from(Transition("answer"), {"close": _CLOSED}),
    "over": _from(Transition("over"), {"prompt": Transition("over")}),
}


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
    isolated: what was seen of the prompt with each of its pictures alone.
    steering: what steering did, None before the first token.
    last: the token that was sampled last, and the position it belongs to.
    kept: the verdict on the state from which a ``candidate`` or ``marker`` began, None if that was
        steered.
    answered: whether an answer has begun since the last thought did.
    thought_ended: whether a thought has ended.
    in_step: whether `Llama.generate` is at its next token, so that what moves is drafts.
    """

    def __init__(self, thoughts: Thoughts | None = None, isolated: Isolated = NOT_ISOLATED) -> None:
        self.thoughts, self.isolated = thoughts, isolated
        self.state: State = "prompt"
        if thoughts is not None:
            self.state = "thought" if thoughts.begun else "candidate"
        self.steering: Steering | None = None
        self.last: tuple[int, int] | None = None
        self.kept: Verdict | None = None
        self.answered = self.thought_ended = self.in_step = False
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

    def continues(self, tokens: list[int], position: int, *, drafts: bool) -> bool:
        """Whether ``tokens`` that are evaluated at ``position`` are the one that was sampled last,
        in a step with ``drafts`` behind it."""
        single = len(tokens) == 1 or (drafts and self.in_step)
        return single and self.last == (tokens[0], position)

    def lags(self, end: int) -> bool:
        """Whether, within a step, a context that ends at ``end`` lacks the token that was sampled
        last: something else has taken it back."""
        return self.in_step and self.last is not None and end <= self.last[1]

    def by_hand(self) -> Reply:
        """The reply that goes on from here where the caller evaluates by hand, without thoughts;
        this one is over."""
        other = Reply()
        if self.last is not None:
            other.state = "answer"
        other.steering, other.last = self.steering, self.last
        self.come("overtaken")
        return other

    def record(self, steering: Steering) -> None:
        """Write down what was found; that a token was steered stays there."""
        known = self.steering
        if known is None or known.alpha == 0 or steering.alpha > 0:
            self.steering = steering

    # From state to state -------------------------------------------------------------------------

    def come(self, event: Event) -> None:
        """Go on with what is no token: a prompt is evaluated, or another reply begins."""
        self.state = TABLE[self.state][event].next
        self.last = None

    def judges(self, token: int) -> bool:
        """Whether the answer begins, or begins anew, with ``token``, the next one."""
        return any(action == "judge" for action, _, _ in self._path(token))

    def take(self, token: int, *, steered: bool = False) -> None:
        """Go on with ``token``, the next one. ``steered``: it comes from a steered state, as will
        whatever begins with it: a blank one begins the answer."""
        if steered:
            self.kept = None
        for action, state, text in self._path(token, steered=steered):
            self.state, self._text = state, text
            self.thought_ended |= action == "end thought"
            self.answered = state == "answer" or (self.answered and action != "begin thought")

    def _path(
        self, token: int, *, steered: bool = False
    ) -> Iterator[tuple[Action | None, State, bytes]]:
        """Yields the transitions that ``token`` brings, each with the next state and its text so
        far: one token may hold the end of a thought and the beginning of the answer."""
        state, text = self.state, self._text + self._piece(token)
        while True:
            event, text, rest = self._event(state, text)
            if steered and event == "blank":
                event = "text"
            state, action = TABLE[state][event]
            yield action, state, text
            if not rest:
                return
            text = rest

    def _event(self, state: State, text: bytes) -> tuple[Event, bytes, bytes]:
        """The first event in ``text``, all since ``state`` began; how much of it is to be
        remembered; and the text after it."""
        if state in ("candidate", "marker"):
            text = text.lstrip()
            if not text:
                return "blank", b"", b""
            if text.startswith(self._open):
                return "open", b"", text.removeprefix(self._open)
            assert self.thoughts is not None
            first = self.thoughts.whole and state == "candidate"
            if self._open.startswith(text) and not first:
                return "marker", text, b""
            return "text", b"", text
        before, closed, after = text.partition(self._close) if self._close else (text, b"", b"")
        return ("close", b"", after) if closed else ("text", before[1 - len(self._close) :], b"")

    def _piece(self, token: int) -> bytes:
        return b"" if self.thoughts is None else self.thoughts.piece(token)

    # What is read --------------------------------------------------------------------------------

    @property
    def reads(self) -> bool:
        """Whether the answer may begin with the token after the next one: then the state of that
        next one is needed, which was not evaluated yet."""
        # One token may end the marker and begin the answer.
        return (
            self.state == "candidate"
            or (self.state == "thought" and self._closes(self._text))
            or (self.state == "answer" and self._begins_anew(self._text))
        )

    @property
    def unreached(self) -> bool:
        """Whether an answer has yet to begin."""
        return self.state != "answer" and not self.answered

    def evaluable(self, tokens: list[int]) -> list[int]:
        """The tokens that can be evaluated at once, of one that was taken and a draft after it: one
        while the answer has yet to begin, and none by which it may begin anew."""
        if self.thoughts is None:
            return tokens
        if self.state != "answer" or self.reads:
            return tokens[:1]
        text, kept = self._text, tokens[:1]
        for token in tokens[1:]:
            text += self._piece(token)
            if self._close in text or self._begins_anew(text):
                break
            kept.append(token)
        return kept

    def _closes(self, text: bytes) -> bool:
        """Whether ``text`` ends with a part of the marker that ends a thought."""
        return any(text.endswith(self._close[:n]) for n in range(1, len(self._close)))

    def _begins_anew(self, text: bytes) -> bool:
        """Whether an answer may begin anew within the token after ``text``."""
        return self.thoughts is not None and not self.thoughts.whole and self._closes(text)
