"""Steers the replies of one model: judges the end of a prompt, or where the answer begins, and has
it pushed if a gate opens, before the token that counts is sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Literal

import numpy as np
from llama_cpp import Llama

from mars_gguf.errors import SteeringError
from mars_gguf.runtime.context import Context, explaining, rewind_steered
from mars_gguf.runtime.judging import (
    Position,
    Seen,
    Verdict,
    Way,
    blocks_of,
    judge,
    seen_by,
    steering_of,
    unreached,
)
from mars_gguf.runtime.pushing import Push
from mars_gguf.runtime.reading import Reader, logits
from mars_gguf.runtime.replies import Reply
from mars_gguf.runtime.tap import Rows, Tap
from mars_gguf.runtime.turns import Turns
from mars_gguf.steering import Policy

UNFORESEEN = (
    "the answer began where a thought was expected, and cannot be taken back{}. Ask again, or let "
    "the model not think (reasoning off)."
)


class Steerer:
    """The reply that ``llama`` is at, and the policies that steer it.

    policies: judged at the token that counts; () where nothing is to be steered; None until that
        was said: then nothing can be sampled.
    """

    def __init__(
        self, llama: Llama, context: Context, tap: Tap, way: Way | Literal["auto"]
    ) -> None:
        self.llama, self.context = llama, context
        self.reader = Reader(llama, tap, context)
        self.push = Push(llama, context, self.reader, way)
        self.turns = Turns(llama, context, lambda: self.reader.knows(self.blocks))
        self.policies: tuple[Policy, ...] | None = None
        self.blocks: list[int] = []
        self._found: tuple[Verdict, float] | None = None  # within the pass; the seconds it took

    def steer_by(self, *policies: Policy) -> None:
        """Steer by ``policies`` from now on. Raises ValueError for two of one name."""
        if len({policy.name for policy in policies}) < len(policies):
            raise ValueError("policies: found two of one name, expected names that differ")
        self.policies, self.blocks, self._found = policies, blocks_of(policies), None

    @contextmanager
    def using(self, *policies: Policy) -> Iterator[None]:
        """Context manager: within it, steer by ``policies`` instead."""
        before = self.policies
        self.steer_by(*policies)
        try:
            yield
        finally:
            self.steer_by(*before or ())
            self.policies = before

    @property
    def reply(self) -> Reply:
        """The reply that ``llama`` is at."""
        return self.turns.reply

    def move(self, end: int) -> None:
        """Take note that the context ends at position ``end`` now."""
        grown = end > self.context.n_tokens
        if not self.context.counting:
            self.moved()
        self.context.move(end)
        if grown:
            self.llama.on_batch()

    def moved(self) -> None:
        """Take note that something else than `eval` moved the end of the context."""
        self._found = None
        self.reader.forget()
        self.turns.moved()

    # Evaluation ----------------------------------------------------------------------------------

    def eval(self, tokens: list[int]) -> None:
        """Evaluate tokens, and read the states of the last one unless they continue a reply (are
        the token that was sampled last, and its drafts)."""
        if not self.reply.in_step:
            self.turns.reply = self.reply.by_hand()
        reply, drafts = self.reply, self.llama.draft_model is not None
        with self.context.evaluating():
            if not tokens:
                self.reader.pass_over(tokens)
            elif not reply.continues(tokens, self.context.n_tokens, drafts=drafts):
                self._eval_prompt(tokens)
            else:
                # A draft may repeat the mark of a picture, which is no token.
                tokens = reply.evaluable(list(takewhile(lambda token: token >= 0, tokens)))
                if reply.reads:
                    self._read(tokens, again=True)
                else:
                    self.reader.pass_over(tokens)

    def _eval_prompt(self, tokens: list[int]) -> None:
        self.reply.come("prompt")
        if self.context.steered_at is not None:
            tokens = rewind_steered(self.context) + tokens
        # A chat handler's text may turn out to be the end of the prompt, and then it has to be
        # taken back and evaluated again, steered.
        early = self.reply.in_step and self.reply.state == "prompt"
        within = early and self.push.way == "inline"
        with explaining(self.context, tokens):
            self._read(tokens, again=not early or len(self.blocks) > 1, push=within)

    def _read(self, tokens: list[int], *, again: bool, push: bool = False) -> None:
        """Evaluate ``tokens`` and read the states of the last one. ``again``: they may have to be
        evaluated again. ``push``: judge and push within the pass."""
        self._found = None
        if not self.blocks:  # a model that is only measured
            self.reader.pass_over(tokens)
            return
        self.context.mark_beginning(again=again)
        if push:
            self._found = self.push.in_pass(tokens, self.blocks, self._judge)
        else:
            self.reader.evaluate(tokens, self.blocks)

    # Judgement -----------------------------------------------------------------------------------

    def sample(self, draw: Callable[[], int], index: int | None, *, grammar: bool) -> int:
        """A token of ``draw``; before the one that counts, judges and has pushed. ``index``: the
        position that it is drawn after, None for the end. Raises SteeringError if the end of the
        context was not evaluated by `eval`: it cannot be judged."""
        self.context.require_known()
        end = self.context.n_tokens
        if index not in (None, end - 1) and not self.reply.in_step:
            raise SteeringError(
                f"idx: found {index}, expected {end - 1}, the end of what was judged. "
                "Nothing was generated."
            )
        if self.policies is None:
            raise SteeringError("loaded without a vector, to be measured: nothing can be sampled")
        token = self._sample_steered(draw, grammar=grammar) if self.policies else draw()
        self.reply.last = token, end if index is None else index + 1
        self.llama.on_token()
        return token

    def _sample_steered(self, draw: Callable[[], int], *, grammar: bool) -> int:
        """A token of ``draw``, which is judged, and steered if a gate opens, where the answer
        begins with it: before it is drawn, or again, where that could not be foreseen."""
        reply = self.reply
        foreseen = self._foresees_answer()
        pushed = foreseen and self._settle()
        token = draw()
        if not foreseen and reply.judges(token) and self._settle_unforeseen(grammar=grammar):
            pushed, token = True, draw()
        reply.take(token, steered=pushed)
        if reply.unreached:
            reply.record(unreached(self.context.modality, self.blocks[-1]))
        return token

    def _foresees_answer(self) -> bool:
        """Whether the answer begins with the next token, as far as can be told before it is drawn:
        behind a prompt, or where the likeliest token begins it."""
        reply = self.reply
        if reply.state == "candidate":
            reply.kept = self._weigh()
            return reply.judges(int(np.argmax(logits(self.llama))))
        if reply.state == "prompt":
            reply.steering = None
            return True
        return reply.thoughts is None and reply.lags(self.context.n_tokens)

    def _settle_unforeseen(self, *, grammar: bool) -> bool:
        """Judge the state that an answer comes from which began with a token that was not the
        likeliest one, and push it if a gate opens: whether one did, and the token has to be drawn
        again. Raises SteeringError where it cannot be."""
        reply = self.reply
        if reply.state == "answer" and not self.reader.knows(self.blocks):
            return False  # it began before, and was judged there
        verdict = reply.kept if reply.state == "marker" else self._weigh()
        if verdict is None:
            return False
        if not verdict.chosen.opens:
            self._record(verdict, 0.0)
            return False
        if reply.state == "marker" or grammar:
            raise SteeringError(UNFORESEEN.format(" under a grammar" if grammar else ""))
        return self._settle()

    def _weigh(self) -> Verdict:
        """The verdict on the end of the context."""
        if not self.reader.knows(self.blocks):
            raise SteeringError(
                "no hidden state was read for the last prompt token. Nothing was generated."
            )
        return self._judge(self.reader.states)

    def _judge(self, states: Mapping[int, Rows]) -> Verdict:
        isolated = seen_by(self.blocks, self.reply.isolated)
        return judge(self.policies or (), Seen(states, self.context.modality), isolated)

    def _settle(self) -> bool:
        """Judge the end of the context and push it if a gate opens; whether one did."""
        began = time.perf_counter()
        if self._found is not None:
            verdict, seconds = self._found
        else:
            verdict = self._weigh()
            if verdict.chosen.opens:
                self.push.again(verdict.chosen)
            seconds = time.perf_counter() - began
        self._record(verdict, seconds)
        return verdict.chosen.opens

    def _record(self, verdict: Verdict, seconds: float) -> None:
        seconds += self.reply.isolated.seconds
        self.reply.record(steering_of(verdict, self.push.way, seconds, self._position))

    @property
    def _position(self) -> Position:
        """The token that is judged now."""
        reply = self.reply
        if reply.state in ("candidate", "marker") and not reply.thought_ended:
            return "prompt"
        return "answer" if reply.thoughts is not None else self.llama.template.first_position
