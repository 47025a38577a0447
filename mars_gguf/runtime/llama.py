"""The runtime: a ``llama_cpp.Llama`` that steers the first token of every reply.

While a prompt is processed, the hidden state of its last token is read at one block. If the gate
stays closed nothing else happens, and the output is bit-identical to plain llama-cpp-python.
If it opens, the first token is sampled from a steered state; later tokens are not steered, and
what the steered token left in the KV cache is not carried into later prompts.

Of a model that thinks first, the token that counts may be the first of the answer
(``reasoning="answer"``): it is found as the reply goes on, and only then judged and steered.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib
from llama_cpp.llama_chat_format import get_chat_completion_handler

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.runtime.alone import alone
from mars_gguf.runtime.handlers import ReportingHandler, own_handler
from mars_gguf.runtime.judging import JudgingLlama, Position, Way
from mars_gguf.runtime.model import logits
from mars_gguf.runtime.mtmd import guard
from mars_gguf.runtime.probe import self_test
from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.runtime.thoughts import AnswerWatch
from mars_gguf.steering import Decision
from mars_gguf.vectors import Vector, read_vector


def _require_no_thoughts(vector: Vector) -> None:
    """Raise ModelError for a vector that a chat handler of llama-cpp-python's cannot be used with:
    whether its prompts let the model think is not known."""
    if vector.model.reasoning:
        raise ModelError(
            f"the vector was measured with reasoning {vector.model.reasoning!r}, which no "
            "chat_handler or chat_format of llama-cpp-python's keeps to: leave it out, and prompts "
            "are written by the model's own template"
        )


class SteeredLlama(JudgingLlama):
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
        self._chat_handler = None
        self._watch: AnswerWatch | None = None
        self._doubt: Decision | None = None  # what was found where a thought seemed to begin
        self.brought = bool(brought)
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

    # Prompt, first token, reply ----------------------------------------------------------------

    def _begin(self, tokens: list[int], mine: object, *, reset: bool) -> None:
        super()._begin(tokens, mine, reset=reset)
        self._watch = None
        if self._opened is not None and self.template.reasoning == "answer" and not self.brought:
            assert self.template.thinks is not None
            marker = self.template.thinks.open.encode()
            whole = len(self.tokenize(marker, add_bos=False, special=True)) == 1
            self._watch = AnswerWatch(
                self.template.thinks, self._piece, opened=self._opened, whole=whole
            )

    @property
    def _early(self) -> bool:
        return self._watch is None

    def _piece(self, token: int) -> bytes:
        """The text of a token, special ones too."""
        vocab, size = lib.llama_model_get_vocab(self.model), 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(vocab, token, buffer, size, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    @alone
    def eval(self, tokens: Sequence[int]) -> None:
        """As ``Llama.eval``; reads the hidden state of the last token unless ``tokens`` continue
        a reply (are the token that was sampled last)."""
        tokens = list(tokens)
        if not self._generating_step:
            self._generating = self._watch = None
        self._evaluating = True
        try:
            if not tokens or self._continues_reply(tokens):
                # A draft may repeat the mark of a picture, which is no token.
                tokens = list(takewhile(lambda token: token >= 0, tokens))
                if self._watch is not None:
                    tokens = self._watch.alone(tokens)
                if tokens and self._watch is not None and self._watch.probes:
                    self._pending = False
                    self._eval_probed(tokens)
                else:
                    with nullcontext() if self.tap.compiled else interrupts_held():
                        Llama.eval(self, tokens)
                self._pending = self._pending and not tokens
            else:
                self._eval_prompt(tokens)
        finally:
            self._evaluating = False

    def _continues_reply(self, tokens: Sequence[int]) -> bool:
        # More than the token just sampled comes with speculative decoding, else it is a prompt.
        drafted = self.draft_model is not None and self._generating_step
        return self._sampled == (tokens[0], self._n_tokens) and (len(tokens) == 1 or drafted)

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
        watch, steered = self._watch, None
        if self._pending:
            self._reading_prompt = False
        if watch is not None:
            steered = self._at_a_candidate(watch)
        elif self._pending:
            steered = self._steer(self._at_the_prompts_end)
        self._pending = False  # after a failure, the next sample must not go unsteered
        token: int = super().sample(*args, **kwargs)
        if watch is not None:
            if steered is None and watch.begins(token):
                steered = self._settle_after(watch, grammar=kwargs.get("grammar") is not None)
                token = super().sample(*args, **kwargs) if steered else token
            if steered:
                self._doubt = None  # whatever begins now comes from a steered state
            watch.take(token, over=steered is True)
            if watch.waits and not watch.answered:
                self._record(None, None, 0.0)
        self._sampled = token, self._n_tokens if index is None else index + 1
        return token

    # Where the answer begins ---------------------------------------------------------------------

    @property
    def _at_the_prompts_end(self) -> Position:
        return "thought" if self.template.reasoning == "thought" and not self.brought else "prompt"

    def _at_a_candidate(self, watch: AnswerWatch) -> bool | None:
        """Judge, and steer if the gate opens, where the answer is about to begin as the most
        probable token says; whether it was steered, None where it does not begin."""
        if watch.state != "candidate":
            return None
        self._doubt = self._weigh()
        if watch.reads(int(np.argmax(logits(self)))) != "answer":
            return None
        return self._steer("answer" if watch.after_thought else "prompt")

    def _settle_after(self, watch: AnswerWatch, *, grammar: bool) -> bool:
        """The answer began with a token that was not the most probable one: judge and steer after
        the fact; whether it was steered, and the token has to be sampled anew. Raises SteeringError
        where it cannot be."""
        before = not watch.after_thought and watch.state in ("candidate", "opening")
        position: Position = "prompt" if before else "answer"
        opening = watch.state == "opening"
        if opening and self._doubt is None:
            return False
        decision = self._doubt if opening else self._weigh()
        assert decision is not None
        if decision.alpha == 0:
            self._record(decision, position, 0.0)
            return False
        if opening or grammar:
            raise SteeringError(
                "the answer began where a thought was expected, and cannot be taken back"
                + (" under a grammar" if grammar else "")
                + ". Ask again, or let the model not think (reasoning off)."
            )
        return self._steer(position)
