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
from mars_gguf.runtime.context import Context, explaining
from mars_gguf.runtime.judging import (
    Position,
    Seen,
    Steering,
    Verdict,
    Way,
    blocks_of,
    judge,
    seen_by,
    steering_of,
)
from mars_gguf.runtime.pushing import Push
from mars_gguf.runtime.reading import Reader, logits
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
        if not self.turns.reply.in_step:
            self.turns.reply = self.turns.reply.by_hand()
        reply, drafts = self.turns.reply, self.llama.draft_model is not None
        with self.context.evaluating():
            if not tokens:
                self.reader.pass_over(tokens)
            elif reply.goes_on(tokens, self.context.n_tokens, drafts=drafts):
                # A draft may repeat the mark of a picture, which is no token.
                tokens = reply.alone(list(takewhile(lambda token: token >= 0, tokens)))
                reply.unjudged = False
                if reply.reads:
                    self._read(tokens, again=True)
                else:
                    self.reader.pass_over(tokens)
            else:
                self._eval_prompt(tokens)

    def _eval_prompt(self, tokens: list[int]) -> None:
        reply = self.turns.reply
        if reply.thoughts is None:
            reply.state = "prompt"
        reply.last = None
        if self.context.steered_at is not None:
            tokens = self.context.take_back_steered() + tokens
        # A chat handler's text may turn out to be the end of the prompt, and then it has to be
        # taken back and evaluated again, steered.
        early = reply.in_step and reply.state == "prompt" and reply.thoughts is None
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
        if index not in (None, end - 1) and not self.turns.reply.in_step:
            raise SteeringError(
                f"idx: found {index}, expected {end - 1}, the end of what was judged. "
                "Nothing was generated."
            )
        pushed = self._before_token()
        token = self._after_token(draw(), pushed, draw, grammar=grammar)
        self.turns.reply.last = token, end if index is None else index + 1
        self.llama.on_token()
        return token

    def _before_token(self) -> bool | None:
        """Judge, and have pushed if a gate opens, where the token that counts comes next; whether
        it was, None elsewhere. Raises SteeringError if the end cannot be judged."""
        reply = self.turns.reply
        if self.policies is None:
            raise SteeringError("loaded without a vector, to be measured: nothing can be sampled")
        if not self.policies:
            return None
        if reply.thoughts is None:
            if reply.state != "prompt" and not reply.unjudged:
                return None
            if reply.state == "prompt":
                reply.steering = None
            pushed = self._settle(self.llama.template.first_position)
            reply.state, reply.unjudged = "answer", False
            return pushed
        if reply.state == "prompt":
            reply.begin()
        if reply.state != "candidate":
            return None
        reply.doubt = self._weigh()
        if reply.meaning(int(np.argmax(logits(self.llama)))) != "answer":
            return None
        return self._settle("answer" if reply.after_thought else "prompt")

    def _after_token(
        self, token: int, pushed: bool | None, sample: Callable[[], int], *, grammar: bool
    ) -> int:
        """Follow a reply with thoughts past ``token``, and return it; another one of ``sample``
        where the answer began with it unforeseen, and the gate opened."""
        reply = self.turns.reply
        if reply.thoughts is None or not self.policies:
            return token
        if pushed is None and reply.begins_answer(token):
            pushed = self._settle_after(grammar=grammar)
            token = sample() if pushed else token
        if pushed:
            reply.doubt = None  # whatever begins now comes from a steered state
        reply.take(token, over=pushed is True)
        if reply.waits and not reply.answered:
            modality, block = self.context.modality, self.blocks[-1]
            reply.record(Steering(modality, None, None, None, 0.0, block, None, 0.0, None))
        return token

    def _settle_after(self, *, grammar: bool) -> bool:
        """The answer began with a token that was not the most probable one: judge, and have pushed,
        after the fact; whether it was, and the token has to be sampled anew. Raises SteeringError
        where it cannot be."""
        reply = self.turns.reply
        before = not reply.after_thought and reply.state in ("candidate", "marker")
        position: Position = "prompt" if before else "answer"
        begun = reply.state == "marker"
        if begun and reply.doubt is None:
            return False
        verdict = reply.doubt if begun else self._weigh()
        assert verdict is not None
        if not verdict.chosen.opens:
            self._record(verdict, 0.0, position)
            return False
        if begun or grammar:
            raise SteeringError(UNFORESEEN.format(" under a grammar" if grammar else ""))
        return self._settle(position)

    def _weigh(self) -> Verdict:
        """The verdict on the end of the context."""
        if not self.reader.knows(self.blocks):
            raise SteeringError(
                "no hidden state was read for the last prompt token. Nothing was generated."
            )
        return self._judge(self.reader.states)

    def _judge(self, states: Mapping[int, Rows]) -> Verdict:
        apart = seen_by(self.blocks, self.turns.reply.apart)
        return judge(self.policies or (), Seen(states, self.context.modality), apart)

    def _settle(self, position: Position) -> bool:
        """Judge the end of the context and push it if a gate opens; whether one did."""
        began = time.perf_counter()
        if self._found is not None:
            verdict, seconds = self._found
        else:
            verdict = self._weigh()
            if verdict.chosen.opens:
                self.push.again(verdict.chosen)
            seconds = time.perf_counter() - began
        self._record(verdict, seconds, position)
        return verdict.chosen.opens

    def _record(self, verdict: Verdict, seconds: float, position: Position) -> None:
        seconds += self.turns.reply.apart.seconds
        self.turns.reply.record(steering_of(verdict, self.push.way, seconds, position))
