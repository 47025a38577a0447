"""Keeps account of what a context holds: text, media, a steered token; and rewinds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.modalities import MEDIA
from mars_gguf.runtime.chunks import n_alike
from mars_gguf.runtime.marks import Marks
from mars_gguf.runtime.memory import MAX_BYTES, Checkpoint, Memory


class Context:
    """The account of sequence 0 of one ``llama``, whose ``n_tokens`` and ``input_ids`` it marks.

    n_tokens: positions in the context.
    marks: the media that it shows.
    steered_at: the first position that holds what steering left, None if none does.
    before: where the latest evaluation began, None if nothing is known of it.
    keep_turns: keep snapshots of a memory that cannot be rewound, to continue turns from.
    """

    def __init__(self, llama: Llama, *, keep_turns: bool = False) -> None:
        self.llama, self.memory, self.keep_turns = llama, Memory(llama), keep_turns
        self.n_tokens = 0
        self.marks = Marks()
        self.steered_at: int | None = None
        self.before: Checkpoint | None = None
        self.no_cell_left = False
        self.counting = False  # positions are added by eval, which says itself what they hold
        self._announced: tuple[str, Any] = (MEDIA[0], None)  # the medium that is decoded next

    # What it holds -------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context manager: positions that are added within are tokens that eval writes down."""
        before, self.counting = self.counting, True
        try:
            yield
        finally:
            self.counting = before

    def move(self, end: int) -> None:
        """Take note that the context ends at position ``end`` now."""
        before, self.n_tokens = self.n_tokens, end
        if end <= before:
            self.memory.note_end(before, end)
            if self.marks.shown:
                self.marks.read(self.llama.input_ids[:end], self.marks.shown)
            if self.steered_at is not None and end <= self.steered_at:
                self.steered_at = None
        elif not self.counting:
            # Chat handlers decode a medium by themselves and then move n_tokens past it.
            self.llama.input_ids[before:end] = self.marks.add(*self._announced)
            self._announced = (MEDIA[0], None)

    def announce(self, modality: str, identity: Any = None) -> None:
        """Say what is decoded next by something else than eval: a medium."""
        self._announced = modality, identity

    @property
    def modality(self) -> str:
        """The modality of the context, by the media that it shows."""
        return self.marks.modality

    @property
    def tokens(self) -> list[int]:
        """Token ids of the context, media by their marks."""
        ids: list[int] = self.llama.input_ids[: self.n_tokens].tolist()
        return ids

    @property
    def n_trained(self) -> int:
        """Tokens of context that the model was trained with."""
        return int(lib.llama_model_n_ctx_train(self.llama.model))

    @property
    def n_reusable(self) -> int:
        """How many positions the next prompt may continue: those before a steered token."""
        return self.n_tokens if self.steered_at is None else self.steered_at

    @property
    def full(self) -> bool:
        """Whether the latest reply ended because the context did."""
        return self.no_cell_left or self.n_tokens >= self.llama.n_ctx() - 1

    def note_steered(self, position: int) -> None:
        """Remember that what follows from ``position`` on is what steering left."""
        first = self.steered_at
        self.steered_at = position if first is None else min(first, position)

    def no_cell_for(self, n_tokens: int, error: BaseException) -> bool:
        """Whether ``error`` says that the context is full although there are positions for
        ``n_tokens`` more: with M-RoPE, a picture takes fewer positions than cells."""
        full = str(error) == "llama_decode returned 1"  # llama-cpp-python's LlamaContext.decode
        return full and self.n_tokens + n_tokens <= self.llama.n_ctx()

    def require_known(self) -> None:
        """Raise SteeringError unless the memory holds as many positions as were evaluated."""
        held = self.memory.n_held
        if held != self.n_tokens:
            raise SteeringError(
                f"the context holds {held} positions, expected {self.n_tokens}: something else "
                "than eval has changed it. Nothing was generated."
            )

    @contextmanager
    def emptied_on_error(self) -> Iterator[None]:
        """Context manager: if it ends by an exception, the context is empty."""
        try:
            yield
        except BaseException:
            self.rewind(0)
            raise

    # Rewinding -----------------------------------------------------------------------------------

    def rewind(self, position: int) -> int:
        """Take the context back to ``position`` (at most ``n_reusable``), or to as near before it
        as the memory can be brought back to; return where it ends now."""
        if not 0 <= position <= self.n_reusable:
            raise ValueError(f"position {position}, expected 0 to {self.n_reusable}")
        checkpoint = self.memory.nearest(position)
        self.restore(checkpoint)
        if checkpoint.position == 0:
            self.llama.reset()
        self.before = None
        self.llama._requires_eval = True  # the logits are those of a later position
        return checkpoint.position

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take the context back to where it ended at ``checkpoint``."""
        self.llama.n_tokens = checkpoint.position  # first: what lies beyond is never relied on
        self.memory.restore(checkpoint)

    def mark_beginning(self, *, again: bool) -> None:
        """Remember that an evaluation begins here; with ``again``, so that it can be repeated."""
        snapshot = self.memory.snapshot() if again and self.memory.lets_go else None
        self.before = Checkpoint(self.n_tokens, snapshot)

    @property
    def repeats(self) -> bool:
        """Whether the latest evaluation can be taken back, and repeated."""
        if self.before is None:
            return False
        return self.before.snapshot is not None or self.memory.rewinds_far

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Context manager: where turns are kept, what is evaluated within is taken back at its end,
        unless the memory is too large to be copied; else the context is then whatever it is."""
        kept = self.keep_turns and self.n_tokens and self.memory.size(whole=True) <= MAX_BYTES
        if not kept:
            yield
            return
        tokens, marks, steered_at = self.tokens, deepcopy(self.marks), self.steered_at
        checkpoint = self.memory.whole(len(tokens))
        yield
        self.n_tokens, self.marks, self.steered_at = len(tokens), marks, steered_at
        self.llama.input_ids[: len(tokens)] = tokens
        self.restore(checkpoint)
        self.llama._requires_eval, self.before = True, None

    def resume(self, tokens: Sequence[int]) -> None:
        """Make ready for `Llama.generate` with a prompt of ``tokens``, which would rewind the
        memory farther than it can be."""
        known = self.tokens[: self.n_reusable]
        evaluated = known == list(tokens) and not self.llama._requires_eval
        if evaluated or self.memory.rewinds_far:
            return
        common = n_alike(known, tokens[:-1])
        again = tokens[self.rewind(common) : common]
        if self.keep_turns and min(again, default=0) >= 0:  # pictures are not among them
            if again:
                self.llama.eval(again)
            self.keep()

    def keep(self) -> None:
        """Keep a snapshot of the end of the context, if turns are kept and that takes one."""
        kept = self.keep_turns and self.n_tokens > 0 and self.steered_at is None
        if kept and not self.memory.rewinds_far:
            self.memory.keep(self.n_tokens)

    # States that are saved -----------------------------------------------------------------------

    def added_to(self, state: Any) -> Any:
        """Adds to what ``Llama.save_state`` returned what the media show, and hides the steered
        token from a plain ``Llama`` that reads it."""
        state.shown, state.held = dict(self.marks.shown), self.n_tokens
        if self.steered_at is not None:
            state.n_tokens = self.steered_at
            state.scores = state.scores[: self.steered_at]
        return state

    def restored(self, state: Any) -> None:
        """Take note that ``Llama.load_state`` has put ``state`` in the place of the context."""
        self.before = None
        self.memory.forget()
        n_plain, self.n_tokens = self.n_tokens, getattr(state, "held", self.n_tokens)
        self.steered_at = n_plain if n_plain < self.n_tokens else None
        self.marks.read(self.llama.input_ids[: self.n_tokens], getattr(state, "shown", {}))


def rewind_steered(context: Context) -> list[int]:
    """Take back what steering left, and return the tokens from there on, to evaluate again. Raises
    SteeringError, with an empty context, if there are media among them."""
    assert context.steered_at is not None
    known = context.tokens
    again = known[context.rewind(context.steered_at) :]
    if min(again) < 0:
        context.rewind(0)
        raise SteeringError(
            "the context held a picture and a steered token, which this memory (recurrent, hybrid "
            "or of sliding windows) cannot take back. It is empty now: begin anew."
        )
    return again


@contextmanager
def explaining(context: Context, tokens: Sequence[int]) -> Iterator[None]:
    """Context manager: over ``tokens`` that are evaluated within, raises ValueError where the
    context is full, ModelError where they are not of the vocabulary."""
    start, llama = context.n_tokens, context.llama
    try:
        yield
    except (RuntimeError, OverflowError) as error:
        if context.no_cell_for(len(tokens), error):
            raise ValueError(
                f"Prompt exceeds n_ctx: {start + len(tokens)} positions, and more cells than "
                f"{llama.n_ctx()} with those that its pictures take"
            ) from error
        require_text(llama, tokens)
        raise


def require_text(llama: Llama, tokens: Sequence[int]) -> None:
    """Raise ModelError unless all ``tokens`` are of the vocabulary."""
    n_vocab = llama.n_vocab()
    odd = [token for token in tokens if not 0 <= token < n_vocab]
    if odd:
        raise ModelError(
            f"the prompt has token id {odd[0]}, expected ids from 0 to {n_vocab - 1}: "
            "pictures enter through a chat handler, and no other prompt may come in between."
        )


def require_prompt(llama: Llama, tokens: Sequence[int], known: Sequence[int]) -> None:
    """Raise ModelError for a prompt that ends with a picture, or whose pictures, by their marks,
    are not those that the context begins with, whose ids are ``known``."""
    if tokens and tokens[-1] < 0:
        raise ModelError(
            "the prompt ends with an image, expected text after it: llama.cpp has no logits "
            "there. Use a chat template, or add text."
        )
    if min(tokens, default=0) < 0:
        require_text(llama, tokens[n_alike(tokens, known) :])
