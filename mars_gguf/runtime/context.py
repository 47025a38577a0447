"""What the context of a model holds: text, pictures, frames of films, and a steered token."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime.alone import alone
from mars_gguf.runtime.checkpoints import Checkpoints, restore_partial_state
from mars_gguf.runtime.model import TappedLlama
from mars_gguf.runtime.mtmd import MediaChunk
from mars_gguf.runtime.sequences import n_alike
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Decision


class ContextLlama(TappedLlama):
    """A TappedLlama that keeps account of its context.

    The positions of a picture are marked in ``input_ids`` by a negative number of its own, so that
    no prefix of text tokens ever matches them; an odd one is of a film. ``shown`` says by that mark
    what it shows.

    ``_pending`` says that the end of the context was not judged: it was moved by something else
    than `eval`, or a prompt was evaluated of which nothing is sampled yet.

    keep_turns: keep checkpoints of a memory that cannot be rewound, to continue turns from.
    """

    _sampled: tuple[int, int] | None  # the token that was, and the position it belongs to

    def __init__(self, model_path: str, *, keep_turns: bool = False, **kwargs: Any) -> None:
        self._n_tokens = 0
        self.keep_turns, self._checkpoints = keep_turns, Checkpoints()
        self._in_order = True  # windows let go of the earliest positions first
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
        if value < before:
            self._in_order = value == 0 or (self._in_order and self._first_held == 0)
        if value <= before:
            self._checkpoints.drop_beyond(value)
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
        token."""
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
    def rewind(self, position: int) -> int:
        """Forget the context from ``position`` (at most ``n_reusable``) on, or from as near before
        it as the memory can be brought back to; return where it ends now."""
        if not 0 <= position <= self.n_reusable:
            raise ValueError(f"position {position}, expected 0 to {self.n_reusable}")
        position, state = self._nearest(position)
        # n_tokens first: what lies beyond it is never relied on.
        self.take_back(position, state)
        if position == 0:
            self.reset()
        self._forget()
        self._requires_eval = True  # the logits are those of a later position
        return position

    def _nearest(self, position: int) -> tuple[int, Any]:
        """The last position up to ``position`` where the context can be made to end, and the state
        that `take_back` needs for it."""
        end = lib.llama_memory_seq_pos_max(lib.llama_get_memory(self.ctx), 0)
        if end < position or self.memory_can_rewind_far():
            return position, None
        # A cell that has left the windows is used again when another is needed.
        held = self._first_held <= max(0, position - self.window)
        if held and self._in_order and self.memory_can_rewind():
            return position, None
        return self._checkpoints.newest(position)

    @property
    def _first_held(self) -> int:
        """The first position of which every layer holds something."""
        return int(lib.llama_memory_seq_pos_min(lib.llama_get_memory(self.ctx), 0))

    def resume(self, tokens: Sequence[int]) -> None:
        """Make ready for `generate` with a prompt of ``tokens``, which would rewind the memory
        farther than it can be."""
        known = self.input_ids[: self.n_reusable].tolist()
        evaluated = known == list(tokens) and not self._requires_eval
        if evaluated or self.memory_can_rewind_far():
            return
        common = n_alike(known, tokens[:-1])
        again = tokens[self.rewind(common) : common]
        if self.keep_turns and min(again, default=0) >= 0:  # pictures are not among them
            if again:
                self.eval(again)
            self.keep()

    def keep(self) -> None:
        """Keep a checkpoint at the end of the context, if turns are kept and that takes one."""
        kept = self.keep_turns and self._n_tokens > 0 and self._steered_at is None
        if kept and not self.memory_can_rewind_far():
            self._checkpoints.keep(self._n_tokens, self.ctx)

    @alone
    def load_state(self, state: Any) -> None:
        """Restore what ``save_state`` returned. Nothing can be sampled before the next `eval`: what
        the end of the restored context was is not known."""
        self._evaluating, self._checkpoints = True, Checkpoints()
        try:
            super().load_state(state)
        except BaseException:
            self.take_back(0)  # what is restored by half is nothing
            self._forget()
            raise
        finally:
            self._evaluating = False
            self._moved()
        self._in_order = False
        restored, self._n_tokens = self._n_tokens, getattr(state, "held", self._n_tokens)
        self._steered_at = restored if restored < self._n_tokens else None
        ids = self.input_ids[: self._n_tokens]
        starts = np.flatnonzero((ids < 0) & (np.diff(ids, prepend=0) != 0)).tolist()
        self._media = [(start, bool(ids[start] % 2)) for start in starts]
        # A picture of which the state does not say what it shows is no picture that is shown again.
        self.shown = {int(ids[start]): None for start in starts} | getattr(state, "shown", {})
        self._forget()

    def take_back(self, position: int, state: Any = None) -> None:
        """Take the context from ``position`` on back: with ``state``, what `partial_state` returned
        there, for a memory that cannot be rewound."""
        memory = lib.llama_get_memory(self.ctx)
        self.n_tokens = position
        if position == 0:
            lib.llama_memory_clear(memory, True)
            return
        if state is not None:
            restore_partial_state(self.ctx, state)
            self._in_order = False  # its cells may lie anywhere
        if not lib.llama_memory_seq_rm(memory, 0, position, -1):
            raise SteeringError(f"llama.cpp could not rewind the context to position {position}")

    def take_back_steered(self) -> list[int]:
        """Take back the steered token and what follows it; return the tokens to evaluate anew."""
        assert self._steered_at is not None
        start, state = self._nearest(self._steered_at)
        tokens: list[int] = self.input_ids[start : self._n_tokens].tolist()
        if min(tokens) < 0:
            raise SteeringError(
                "the context holds a picture and a steered token, which this memory (recurrent, "
                "hybrid or of sliding windows) cannot take back. Call reset() and begin anew."
            )
        self.take_back(start, state)
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
