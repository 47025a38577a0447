"""What the end of a context says of its prompt is read, judged, and if the gate opens steered."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llama_cpp import Llama

from mars_gguf.errors import SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.checkpoints import partial_state
from mars_gguf.runtime.probe import eval_seen, judge, require_moved
from mars_gguf.runtime.replies import ReplyingLlama
from mars_gguf.runtime.tap import Rows
from mars_gguf.steering import Decision, steering_vector
from mars_gguf.vectors import Vector

Way = Literal["cvec", "inline"]
Position = Literal["prompt", "thought", "answer"]
UNREACHED = (
    "the reply ended before its answer began, in its thought: nothing was judged or steered. Allow "
    "more tokens"
)


@dataclass(frozen=True)
class Steering:
    """What happened at the token of a reply that counts: the first, or the first of its answer.

    modality: "text"; "image" if the context shows still pictures, one or several; "video" if it
    shows a film.
    t, z, gate, alpha: see mars_gguf.steering; alpha = 0 means nothing was changed.
    way: "cvec" or "inline", None if nothing was changed.
    milliseconds: spent on deciding and steering, beyond plain inference.
    position: which token was judged and steered: the last of the "prompt"; that which ends in a
    "thought" if the first token of a thought counts; or the one before the "answer", after the
    thought. None while a reply has not come to its answer: then t, z and gate are None, too.
    """

    modality: str
    t: float | None
    z: float | None
    gate: float | None
    alpha: float
    layer: int
    way: Way | None
    milliseconds: float
    position: Position | None = "prompt"

    @property
    def note(self) -> str | None:
        """What is to be said of a reply that was not judged."""
        return UNREACHED if self.position is None else None

    def report(self) -> dict[str, Any]:
        """As JSON has it, the note included if there is one."""
        return asdict(self) | ({} if self.note is None else {"note": self.note})


class Account:
    """What is known of the steering of one reply, while it goes on and after it."""

    steering: Steering | None = None


class JudgingLlama(ReplyingLlama):
    """A ReplyingLlama that judges the end of its context by ``vector`` and steers it.

    ``account`` is that of the latest reply, of which ``last_steering`` is what it says.
    """

    vector: Vector
    way: Way

    @property
    def _early(self) -> bool:
        """Whether a prompt is judged, and steered inline, within its evaluation."""
        return True

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        self.account = Account()
        super().__init__(model_path, **kwargs)

    @property
    def last_steering(self) -> Steering | None:
        """What steering did to the latest reply."""
        return self.account.steering

    @last_steering.setter
    def last_steering(self, steering: Steering | None) -> None:
        self.account.steering = steering

    @property
    def _read_here(self) -> tuple[int, int]:
        """Where a state must have been read to judge the prompt by: its end, and the block."""
        return self._n_tokens, self.vector.layer

    def _begin(self, tokens: list[int], mine: object, *, reset: bool) -> None:
        read = self._captured is not None and self._captured[0] == self._read_here
        if self._steered_at is not None or not read:
            self._requires_eval = True
        super()._begin(tokens, mine, reset=reset)
        self._sampled = self._decided = None
        self.account = Account()

    # Read ----------------------------------------------------------------------------------------

    def _eval_prompt(self, tokens: list[int]) -> None:
        self._pending, self._sampled = True, None
        if self._steered_at is not None:
            tokens = self.take_back_steered() + tokens
        # A chat handler's text may turn out to be the end of the prompt, and then it has to be
        # taken back and evaluated again, steered.
        early = self._reading_prompt and self._early
        self._eval_probed(tokens, steer=early and self.way == "inline", again=not early)

    def _eval_probed(self, tokens: list[int], *, steer: bool = False, again: bool = True) -> None:
        """Evaluate ``tokens`` and read the state of the last one; ``again``: they may have to be
        evaluated again."""
        self._captured = self._decided = None
        keep = again and not self.memory_can_rewind_far()
        self._before = self._n_tokens, partial_state(self.ctx) if keep else None
        self._probe(tokens, steer=steer)

    def _probe(self, tokens: list[int], *, steer: bool) -> None:
        """Evaluate ``tokens`` and keep the hidden state of the last one; with ``steer``, decide
        and steer within the same pass."""
        start = self._n_tokens
        end, last = start + len(tokens), (len(tokens) - 1) // self.n_batch * self.n_batch

        def see(row: Rows) -> Rows | None:
            self._captured = (end, self.vector.layer), row
            if not steer:
                return None
            began = time.perf_counter()
            decision = judge(self.vector, row, self.modality)
            self._decided = (decision, time.perf_counter() - began)
            if decision.alpha == 0:
                return None
            self._note_steered(end - 1)
            return row + steering_vector(self.vector.geometry, decision.alpha)

        try:
            if last:
                with nullcontext() if self.tap.compiled else interrupts_held():
                    Llama.eval(self, tokens[:last])
            after = eval_seen(self, self.vector.layer, tokens[last:], see)
            if self._captured is not None and self._decided is not None:
                row, alpha = self._captured[1], self._decided[0].alpha
                if alpha > 0:
                    require_moved(self.vector, row, after, alpha)
        except BaseException as error:
            self.n_tokens, self._captured = start, None
            if self._pending and self.no_cell_for(len(tokens), error):
                raise ValueError(
                    f"Prompt exceeds n_ctx: {end} positions, and more cells than {self.n_ctx()} "
                    "with those that its pictures take"
                ) from error
            if isinstance(error, (RuntimeError, OverflowError)):
                self.require_text(tokens)
            raise
        if self._captured is None:
            raise SteeringError(
                f"the probe did not see the last prompt token at l_out-{self.vector.layer}. "
                "Nothing was generated."
            )

    def _note_steered(self, position: int) -> None:
        """Remember the first position of the context that holds what steering left."""
        first = self._steered_at
        self._steered_at = position if first is None else min(first, position)

    # Judge and steer -----------------------------------------------------------------------------

    def _weigh(self) -> Decision:
        """The decision on the end of the context."""
        if self._captured is None or self._captured[0] != self._read_here:
            raise SteeringError(
                "no hidden state was read for the last prompt token. Nothing was generated."
            )
        return judge(self.vector, self._captured[1], self.modality)

    def _steer(self, position: Position) -> bool:
        """Judge the end of the context and steer it if the gate opens; whether it did."""
        began = time.perf_counter()
        if self._decided is not None:
            decision, seconds = self._decided
        else:
            decision = self._weigh()
            if decision.alpha > 0:
                decision = self._push(decision)
            seconds = time.perf_counter() - began
        self._record(decision, position, seconds)
        return decision.alpha > 0

    def _record(self, decision: Decision | None, position: Position | None, seconds: float) -> None:
        """Write into the account what was found; that a token was steered stays there."""
        known = self.last_steering
        if known is not None and known.alpha > 0 and (decision is None or decision.alpha == 0):
            return
        way = self.way if decision is not None and decision.alpha > 0 else None
        t, z, gate, alpha = decision or (None, None, None, 0.0)
        layer, milliseconds = self.vector.layer, 1000 * seconds
        self.last_steering = Steering(
            self.modality, t, z, gate, alpha, layer, way, milliseconds, position
        )

    def _push(self, decision: Decision) -> Decision:
        """Take the end of the context back and evaluate it again, steered."""
        evaluating, self._evaluating = self._evaluating, True
        try:
            if self.way == "cvec":
                assert self._captured is not None
                self._decode_last_again(self._captured[1], decision.alpha)
                return decision
            return self._evaluate_again()
        finally:
            self._evaluating = evaluating

    def _evaluate_again(self) -> Decision:
        """Take back what was evaluated last and evaluate it again, steered in the pass."""
        assert self._before is not None
        position, state = self._before
        tokens = self.input_ids[position : self._n_tokens].tolist()
        self.take_back(position, state)
        self._probe(tokens, steer=True)
        assert self._decided is not None
        return self._decided[0]

    def _decode_last_again(self, row: Rows, alpha: float) -> None:
        """Take the last token back and decode it alone, under llama.cpp's control vector."""
        token, layer = int(self.input_ids[self._n_tokens - 1]), self.vector.layer
        self.take_back(self._n_tokens - 1)
        self._note_steered(self._n_tokens)
        after: list[Rows] = []
        push = steering_vector(self.vector.geometry, alpha)
        with self.control_vector.applied(layer, push):
            eval_seen(self, layer, [token], after.append)
        require_moved(self.vector, row, after, alpha)
