"""The runtime: a ``llama_cpp.Llama`` that steers the first token of every reply.

While a prompt is processed, the hidden state of its last token is read at one block. If the gate
stays closed nothing else happens, and the output is bit-identical to plain llama-cpp-python.
If it opens, the first token is sampled from a steered state; later tokens are not steered, and
what the steered token left in the KV cache is not carried into later prompts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from llama_cpp import llama_cpp as lib
from llama_cpp.llama_chat_format import get_chat_completion_handler

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.alone import alone
from mars_gguf.runtime.checkpoints import partial_state
from mars_gguf.runtime.handlers import ReportingHandler, own_handler
from mars_gguf.runtime.mtmd import guard
from mars_gguf.runtime.probe import eval_seen, judge, require_moved, self_test
from mars_gguf.runtime.replies import ReplyingLlama
from mars_gguf.runtime.tap import Rows
from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.steering import Decision, steering_vector
from mars_gguf.vectors import Vector, read_vector

Way = Literal["cvec", "inline"]


@dataclass(frozen=True)
class Steering:
    """What happened at the first token of a reply.

    modality: "text"; "image" if the context shows still pictures, one or several; "video" if it
    shows a film.
    t, z, gate, alpha: see mars_gguf.steering; alpha = 0 means nothing was changed.
    way: "cvec" or "inline", None if nothing was changed.
    milliseconds: spent on deciding and steering, beyond plain inference.
    """

    modality: str
    t: float
    z: float
    gate: float
    alpha: float
    layer: int
    way: Way | None
    milliseconds: float


def _require_no_thoughts(vector: Vector) -> None:
    """Raise ModelError for a vector that a chat handler of llama-cpp-python's cannot be used with:
    whether its prompts let the model think is not known."""
    if vector.model.reasoning:
        raise ModelError(
            f"the vector was measured with reasoning {vector.model.reasoning!r}, which no "
            "chat_handler or chat_format of llama-cpp-python's keeps to: leave it out, and prompts "
            "are written by the model's own template"
        )


class SteeredLlama(ReplyingLlama):
    """A ``llama_cpp.Llama``, steered by a vector file. Takes every argument that ``Llama`` takes.

    vector: a file written by mars_gguf.convert, or a Vector.
    mmproj, template, chat_template_kwargs, reasoning: see TappedLlama; ``reasoning`` is the
        vector's by default. A ``chat_handler`` or ``chat_format`` of llama-cpp-python's can be
        given instead, where the vector is not of a model that thinks.
    way: "cvec" decodes the last prompt token again under llama.cpp's control vector; "inline" adds
        the same vector within the pass, which works for every memory and costs no second decode;
        "auto" is "inline".
    force: use a vector made for another quantization, other weights or chat template of the model.
    keep_turns: evaluate only what is new of a conversation with pictures. Replies then equal those
        from the start up to rounding, as they do with text in llama-cpp-python.

    Raises VectorError for a vector that is damaged or made for another model, ModelError for a
    model or mmproj that does not load or cannot be probed and steered. While generating, raises
    SteeringError rather than return an unsteered token.
    """

    def __init__(
        self,
        model_path: str,
        *,
        vector: str | os.PathLike[str] | Vector,
        way: Way | Literal["auto"] = "auto",
        force: bool = False,
        keep_turns: bool = False,
        **kwargs: Any,
    ) -> None:
        if way not in ("auto", "cvec", "inline"):
            raise ModelError(f"way: found {way!r}, expected 'auto', 'cvec' or 'inline'")
        self.vector = vector if isinstance(vector, Vector) else read_vector(vector)
        self.vector.check()
        brought = kwargs.get("chat_handler") or kwargs.get("chat_format")
        ours = ("mmproj", "template", "chat_template_kwargs", "reasoning")
        if brought and any(kwargs.get(name) for name in ours):
            raise ModelError(f"give {', '.join(ours)}, or chat_handler or chat_format: not both")
        self.last_steering: Steering | None = None
        self._chat_handler = None
        super().__init__(model_path, keep_turns=keep_turns, **kwargs)
        kept = (*ours, "context_overrides", "rpc_servers")
        self._arguments = {name: kwargs.get(name) for name in kept} | {
            "vector": self.vector,
            "force": force,
            "keep_turns": keep_turns,
        }
        self.vector.require_model(self.fingerprint, force=force)
        if brought:
            _require_no_thoughts(self.vector)
        if way == "cvec" and not self.memory_can_rewind():
            raise ModelError(
                "way='cvec' decodes the last prompt token twice, which recurrent or hybrid memory "
                f"({self.fingerprint.architecture}) does not allow: use 'inline'"
            )
        self.way: Way = "inline" if way == "auto" else way
        self.brought = bool(brought)
        if not brought:
            self._chat_handler = own_handler(self, keep_turns=keep_turns)
        self_test(self)

    def _template(self, name: Any, kwargs: Any, reasoning: Any) -> ChatTemplate:
        measured: Any = self.vector.model.reasoning or None
        return super()._template(name, kwargs, reasoning or measured)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state["chat_handler"] = self._chat_handler if self.brought else None
        state["chat_format"] = state["chat_format"] if self.brought else None
        return state | self._arguments | {"way": self.way}

    @property
    def chat_handler(self) -> Callable[..., Any] | None:
        """The chat handler, its completions carrying ``mars``: what steering did."""
        if self._chat_handler is None and self.chat_format is None:
            return None  # Llama.__init__ has yet to choose a format
        given = self._chat_handler or self._chat_handlers.get(self.chat_format)
        return ReportingHandler(given or get_chat_completion_handler(self.chat_format))

    @chat_handler.setter
    def chat_handler(self, handler: Any) -> None:
        if isinstance(handler, ReportingHandler):
            handler = handler.handler
        guard(handler, lambda film: setattr(self, "_placed", (film, None)))
        self._chat_handler = handler

    @property
    def _read_here(self) -> tuple[int, int]:
        """Where a state must have been read to judge the prompt by: its end, and the block."""
        return self._n_tokens, self.vector.layer

    # Prompt, first token, reply ----------------------------------------------------------------

    def _begin(self, tokens: list[int], mine: object, *, reset: bool) -> None:
        read = self._captured is not None and self._captured[0] == self._read_here
        if self._steered_at is not None or not read:
            self._requires_eval = True
        super()._begin(tokens, mine, reset=reset)
        self._sampled = self._decided = self.last_steering = None

    @alone
    def eval(self, tokens: Sequence[int]) -> None:
        """As ``Llama.eval``; reads the hidden state of the last token unless ``tokens`` continue
        a reply (are the token that was sampled last)."""
        tokens = list(tokens)
        if not self._generating_step:
            self._generating = None
        self._evaluating = True
        try:
            if not tokens or self._continues_reply(tokens):
                # A draft may repeat the mark of a picture, which is no token.
                tokens = list(takewhile(lambda token: token >= 0, tokens))
                with nullcontext() if self.tap.compiled else interrupts_held():
                    super().eval(tokens)
                self._pending = self._pending and not tokens
            else:
                self._eval_prompt(tokens)
        finally:
            self._evaluating = False

    def _continues_reply(self, tokens: Sequence[int]) -> bool:
        # More than the token just sampled comes with speculative decoding, else it is a prompt.
        drafted = self.draft_model is not None and self._generating_step
        return self._sampled == (tokens[0], self._n_tokens) and (len(tokens) == 1 or drafted)

    def _eval_prompt(self, tokens: list[int]) -> None:
        self._pending = True
        self._captured = self._decided = self._sampled = None
        if self._steered_at is not None:
            tokens = self.take_back_steered() + tokens
        state = None
        if not self._reading_prompt and not self.memory_can_rewind_far():
            # A chat handler's text: it may turn out to be the end of the prompt, and then it has
            # to be taken back and evaluated again, steered.
            state = partial_state(self.ctx)
        self._before = self._n_tokens, state
        self._probe(tokens, steer=self._reading_prompt and self.way == "inline")

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
            self._steered_at = end - 1
            return row + steering_vector(self.vector.geometry, decision.alpha)

        try:
            if last:
                with nullcontext() if self.tap.compiled else interrupts_held():
                    super().eval(tokens[:last])
            after = eval_seen(self, self.vector.layer, tokens[last:], see)
            if self._captured is not None and self._decided is not None:
                row, alpha = self._captured[1], self._decided[0].alpha
                if alpha > 0:
                    require_moved(self.vector, row, after, alpha)
        except BaseException as error:
            self.n_tokens, self._captured = start, None
            if self.no_cell_for(len(tokens), error):
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

    @alone
    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As ``Llama.sample``; before the first token of a reply, steers. Raises SteeringError if
        the end of the context was not evaluated by `eval`: it cannot be judged."""
        held = lib.llama_memory_seq_pos_max(lib.llama_get_memory(self.ctx), 0) + 1
        if held != self._n_tokens:
            raise SteeringError(
                f"the context holds {held} positions, expected {self._n_tokens}: something else "
                "than eval has changed it. Nothing was generated."
            )
        index = kwargs.get("idx")
        if index not in (None, self._n_tokens - 1) and not self._generating_step:
            raise SteeringError(
                f"idx: found {index}, expected {self._n_tokens - 1}, the end of what was judged. "
                "Nothing was generated."
            )
        if self._pending:
            self._reading_prompt = False
            self._evaluating = True
            try:
                self._steer()
            finally:
                self._evaluating = False
            self._pending = False  # after a failure, the next sample must not go unsteered
        token: int = super().sample(*args, **kwargs)
        self._sampled = token, self._n_tokens if index is None else index + 1
        return token

    def _steer(self) -> None:
        began = time.perf_counter()
        if self._captured is None or self._captured[0] != self._read_here:
            raise SteeringError(
                "no hidden state was read for the last prompt token. Nothing was generated."
            )
        if self._decided is not None:
            decision, seconds = self._decided
        else:
            row = self._captured[1]
            decision = judge(self.vector, row, self.modality)
            if decision.alpha > 0 and self.way == "cvec":
                self._decode_last_again(row, decision.alpha)
            elif decision.alpha > 0:
                decision = self._evaluate_again()
            seconds = time.perf_counter() - began
        way = self.way if decision.alpha > 0 else None
        self.last_steering = Steering(
            self.modality, *decision, layer=self.vector.layer, way=way, milliseconds=1000 * seconds
        )

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
        """Take the last prompt token back and decode it alone, under llama.cpp's control vector."""
        token, layer = int(self.input_ids[self._n_tokens - 1]), self.vector.layer
        self.take_back(self._n_tokens - 1)
        self._steered_at = self._n_tokens
        after: list[Rows] = []
        push = steering_vector(self.vector.geometry, alpha)
        with self.control_vector.applied(layer, push):
            eval_seen(self, layer, [token], after.append)
        require_moved(self.vector, row, after, alpha)
