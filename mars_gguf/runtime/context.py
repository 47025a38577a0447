"""What the context of a model holds: text, pictures, frames of films, and a steered token."""

from __future__ import annotations

import ctypes
import secrets
from operator import attrgetter
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.alone import alone
from mars_gguf.runtime.model import TappedLlama
from mars_gguf.runtime.mtmd import MediaChunk
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Decision


class ContextLlama(TappedLlama):
    """A TappedLlama that keeps account of its context.

    The positions of a picture are marked in ``input_ids`` by a negative number of its own, so that
    no prefix of text tokens ever matches them; an odd one is of a film. ``shown`` says by that mark
    what it shows.

    ``_pending`` says that the end of the context was not judged: it was moved by something else
    than `eval`, or a prompt was evaluated of which nothing is sampled yet.
    """

    _sampled: tuple[int, int] | None  # the token that was, and the position it belongs to

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        self._n_tokens = 0
        self._evaluating = self._generating_step = False
        self._pending = True
        self._generating: object | None = None  # the reply that may go on
        self._reading_prompt = False  # of a reply, of which nothing is sampled yet
        self._media: list[tuple[int, bool]] = []  # where each begins, and whether it is of a film
        self.shown: dict[int, Any] = {}
        self._placed: tuple[bool, Any] = (False, None)
        self._steered_at: int | None = None
        self._no_cell_left = False
        self._forget()
        super().__init__(model_path, **kwargs)

    def _set_n_tokens(self, value: int) -> None:
        before, self._n_tokens = self._n_tokens, value
        if not self._evaluating:
            self._moved()
        if value <= before:
            self._media = [(start, film) for start, film in self._media if start < value]
            marks = {int(self.input_ids[start]) for start, _ in self._media}
            self.shown = {mark: shown for mark, shown in self.shown.items() if mark in marks}
            if self._steered_at is not None and value <= self._steered_at:
                self._steered_at = None
        elif not self._evaluating:
            # Chat handlers decode a picture by themselves and then move n_tokens past it.
            film, shown = self._placed
            mark = self._new_mark(film)
            self.input_ids[before:value], self.shown[mark] = mark, shown
            self._media.append((before, film))
            self._placed = (False, None)

    # Read ten times a token.
    n_tokens: Any = property(
        attrgetter("_n_tokens"), _set_n_tokens, doc="Positions in the context."
    )

    def _moved(self) -> None:
        """Take note that something else than `eval` moved the end of the context."""
        self._pending = True
        self._unsee()
        if not self._generating_step:  # else it takes back drafts, and goes on
            self._generating = None
            self._sampled = None

    def give_up(self) -> None:
        self._generating = None

    def _new_mark(self, film: bool) -> int:
        """At random, lest a state of another process holds the same mark of another picture."""
        while True:
            mark = -2 * (1 + secrets.randbelow(1 << 29)) - film
            if mark not in self.shown:
                return mark

    def place(self, chunk: MediaChunk, end: int) -> None:
        """Say that ``chunk`` was decoded, up to position ``end``."""
        self._placed = chunk.film, chunk.identity
        self.n_tokens = end

    def holds(self, chunk: MediaChunk, start: int) -> bool:
        """Whether the context shows ``chunk`` from position ``start`` on."""
        ids = self.input_ids[start : min(start + chunk.n_positions, self._n_tokens)]
        same = len(ids) == chunk.n_positions and bool((ids == ids[0]).all())
        mark = int(ids[0]) if same else 0
        return same and bool(mark % 2) == chunk.film and self.shown.get(mark) == chunk.identity

    @property
    def modality(self) -> str:
        """Modality of the context: "video" if it shows a film, "image" if it shows still pictures,
        one or several, else "text"."""
        if any(film for _, film in self._media):
            return "video"
        return "image" if self._media else "text"

    @property
    def n_reusable(self) -> int:
        """How many positions of the context the next prompt may continue: those before a steered
        token; none if the memory cannot be rewound, or has let go of what left its windows."""
        windows = lib.llama_model_n_swa(self.model) > 0 and not self.context_params.swa_full
        if windows or not self.memory_can_rewind():
            return 0
        return self._n_tokens if self._steered_at is None else self._steered_at

    @property
    def context_full(self) -> bool:
        """Whether the last reply ended because the context did."""
        return self._no_cell_left or self._n_tokens >= self.n_ctx() - 1

    def _forget(self) -> None:
        self._sampled = None
        self._before: tuple[int, Any] | None = None  # where the last evaluation began
        self._unsee()

    def _unsee(self) -> None:
        self._captured: tuple[tuple[int, int], Rows] | None = None  # after what, which block; state
        self._decided: tuple[Decision, float] | None = None

    @alone
    def reset(self) -> None:
        """Forget the context."""
        super().reset()
        self._forget()

    @alone
    def rewind(self, position: int) -> None:
        """Forget the context from ``position`` (at most ``n_reusable``) on."""
        if not 0 <= position <= self.n_reusable:
            raise ValueError(f"position {position}, expected 0 to {self.n_reusable}")
        self.n_tokens = position  # first: what lies beyond n_tokens is never relied on
        memory = lib.llama_get_memory(self.ctx)
        if position == 0:
            self.reset()
            lib.llama_memory_clear(memory, True)
        elif not lib.llama_memory_seq_rm(memory, 0, position, -1):
            raise SteeringError(f"llama.cpp could not rewind the context to position {position}")
        self._forget()
        self._requires_eval = True  # the logits are those of a later position

    @alone
    def load_state(self, state: Any) -> None:
        """Restore what ``save_state`` returned. Nothing can be sampled before the next `eval`: what
        the end of the restored context was is not known."""
        self._evaluating = True
        try:
            super().load_state(state)
        except BaseException:
            self.take_back(0)  # what is restored by half is nothing
            self._forget()
            raise
        finally:
            self._evaluating = False
            self._moved()
        restored, self._n_tokens = self._n_tokens, getattr(state, "held", self._n_tokens)
        self._steered_at = restored if restored < self._n_tokens else None
        ids = self.input_ids[: self._n_tokens]
        starts = np.flatnonzero((ids < 0) & (np.diff(ids, prepend=0) != 0)).tolist()
        self._media = [(start, bool(ids[start] % 2)) for start in starts]
        # A picture of which the state does not say what it shows is no picture that is shown again.
        self.shown = {int(ids[start]): None for start in starts} | getattr(state, "shown", {})
        self._forget()

    def take_back(self, position: int, state: Any = None) -> None:
        """Take the context from ``position`` on back, to evaluate it again: with ``state``, what
        `partial_state` returned there, for a memory that cannot be rewound."""
        memory = lib.llama_get_memory(self.ctx)
        self.n_tokens = position
        if position == 0:
            lib.llama_memory_clear(memory, True)
            return
        if state is not None:
            restore_partial_state(self.ctx, state)
        if not lib.llama_memory_seq_rm(memory, 0, position, -1):
            raise SteeringError("llama.cpp could not take the end of the prompt back")

    def take_back_steered(self) -> list[int]:
        """Take back the steered token and what follows it; return the tokens to evaluate anew."""
        assert self._steered_at is not None
        start = self._steered_at if self.memory_can_rewind() else 0
        tokens: list[int] = self.input_ids[start : self._n_tokens].tolist()
        if min(tokens) < 0:
            raise SteeringError(
                "the context holds a picture and a steered token, which the memory of a recurrent "
                "or hybrid model cannot take back. Call reset() and begin anew."
            )
        self.take_back(start)
        return tokens

    def no_cell_for(self, n_tokens: int, error: BaseException) -> bool:
        """Whether ``error`` says that the context is full although there are positions for
        ``n_tokens`` more: with M-RoPE, a picture takes fewer positions than cells."""
        full = str(error) == "llama_decode returned 1"  # llama-cpp-python's LlamaContext.decode
        return full and self._n_tokens + n_tokens <= self.n_ctx()

    def require_text(self, tokens: list[int]) -> None:
        """Raise ModelError unless all ``tokens`` are of the vocabulary."""
        n_vocab = self.n_vocab()
        odd = [token for token in tokens if not 0 <= token < n_vocab]
        if odd:
            raise ModelError(
                f"the prompt has token id {odd[0]}, expected ids from 0 to {n_vocab - 1}: "
                "pictures enter through a chat handler, and no other prompt may come in between."
            )

    @alone
    def save_state(self) -> Any:
        """Like ``Llama.save_state``, with what the pictures show. A plain ``Llama`` that loads it
        does not see what a steered token left in the cache; this one evaluates that anew."""
        state: Any = super().save_state()
        state.shown, state.held = dict(self.shown), self._n_tokens
        if self._steered_at is not None:
            state.n_tokens = self._steered_at
            state.scores = state.scores[: self._steered_at]
        return state


def partial_state(context: Any) -> Any:
    """The part of the memory that cannot be rewound (recurrent state) of sequence 0."""
    flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    size = lib.llama_state_seq_get_size_ext(context, 0, flags)
    buffer = (ctypes.c_uint8 * size)()
    if lib.llama_state_seq_get_data_ext(context, buffer, size, 0, flags) != size:
        raise SteeringError("llama.cpp could not copy the recurrent state")
    return buffer


def restore_partial_state(context: Any, buffer: Any) -> None:
    """Put back what `partial_state` returned."""
    flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    if lib.llama_state_seq_set_data_ext(context, buffer, len(buffer), 0, flags) != len(buffer):
        raise SteeringError("llama.cpp could not restore the recurrent state")
