"""The runtime: a ``llama_cpp.Llama`` that steers the first token of every reply.

While a prompt is processed, the hidden state of its last token is read at one block. If the gate
stays closed nothing else happens, and the output is bit-identical to plain llama-cpp-python.
If it opens, the first token is sampled from a steered state; later tokens are not steered, and
what the steered token left in the KV cache is not carried into later prompts.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from llama_cpp import llama_chat_format
from llama_cpp import llama_cpp as lib

from mars_gguf import hooks
from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.hooks import HookedLlama, LayerOutput, Rows
from mars_gguf.pictures import own_pictures
from mars_gguf.steering import Decision, decide, steering_vector
from mars_gguf.vectors import ModelFingerprint, Vector, read_vector

Way = Literal["cvec", "inline"]
ROUNDING = 0.1  # of t; up to 0.02 was seen (135M model, Q4_1)


@dataclass(frozen=True)
class Steering:
    """What happened at the first token of a reply.

    modality: "text", "image" (one picture in the context) or "video" (several).
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


class SteeredLlama(HookedLlama):
    """A ``llama_cpp.Llama``, steered by a vector file. Takes every argument that ``Llama`` takes.

    vector: a file written by mars_gguf.convert, or a Vector.
    mmproj: multimodal projector (GGUF); shorthand for a MTMDChatHandler as ``chat_handler``.
    way: "cvec" decodes the last prompt token again under llama.cpp's control vector; "inline" adds
        the same vector within the pass, which works for every memory and costs no second decode;
        "auto" is "inline".
    force: use a vector made for another quantization or chat template of the same model.

    Raises VectorError for a vector that is damaged or made for another model, ModelError for a
    model or mmproj that does not load or cannot be probed and steered. While generating, raises
    SteeringError rather than return an unsteered token.
    """

    def __init__(
        self,
        model_path: str,
        *,
        vector: str | os.PathLike[str] | Vector,
        mmproj: str | None = None,
        way: Way | Literal["auto"] = "auto",
        force: bool = False,
        **kwargs: Any,
    ) -> None:
        if way not in ("auto", "cvec", "inline"):
            raise ModelError(f"way: found {way!r}, expected 'auto', 'cvec' or 'inline'")
        self.vector = vector if isinstance(vector, Vector) else read_vector(vector)
        self.vector.check()
        self.mmproj, self.force = mmproj, force
        self.last_steering: Steering | None = None
        self._n_tokens = 0
        self._evaluating = False
        self._media_counter = 0
        self._pictures: list[int] = []  # where each one in the context begins
        self._chat_handler: Any = None
        self._sampled: int | None = None
        self._captured: tuple[int, Rows] | None = None
        self._decided: tuple[Decision, float] | None = None
        self._pending = False
        self._reading_prompt: object | None = None
        self._steered_at: int | None = None
        self._before: tuple[int, Any] | None = None
        self._no_cell_left = False
        if mmproj is not None:
            if kwargs.get("chat_handler") is not None:
                raise ModelError("give mmproj or chat_handler, not both")
            hooks.require_gguf(mmproj)
            kwargs["chat_handler"] = llama_chat_format.MTMDChatHandler(
                mmproj, verbose=bool(kwargs.get("verbose", True))
            )
            own_pictures(kwargs["chat_handler"])
        super().__init__(model_path, **kwargs)
        self.fingerprint = fingerprint(self)
        self._state, self._steered = (hooks.State(self.fingerprint.n_embd) for _ in range(2))
        self.vector.require_model(self.fingerprint, force=force)
        if way == "cvec" and not self.memory_can_rewind():
            raise ModelError(
                f"way='cvec' decodes the last prompt token twice, which the memory of a recurrent "
                f"or hybrid model ({self.fingerprint.architecture}) does not allow. Use 'inline'."
            )
        self.way: Way = "inline" if way == "auto" else way
        self._self_test()
        if mmproj is not None:
            load_mmproj(self, self._chat_handler)

    # What has been evaluated, and what of it is media ------------------------------------------

    def _set_n_tokens(self, value: int) -> None:
        before, self._n_tokens = self._n_tokens, value
        if value <= before:
            self._shrunk()
        elif not self._evaluating:
            # Chat handlers decode a picture by themselves and then move n_tokens past it. Positions
            # that appear without an eval are one picture each: they are marked by a negative number
            # of its own in input_ids, so that no prefix of text tokens ever matches them.
            self._media_counter += 1
            self.input_ids[before:value] = -self._media_counter
            self._pictures.append(before)

    # Read ten times a token.
    n_tokens = property(attrgetter("_n_tokens"), _set_n_tokens, doc="Positions in the context.")

    def _shrunk(self) -> None:
        self._pictures = [start for start in self._pictures if start < self._n_tokens]
        if self._steered_at is not None and self._n_tokens <= self._steered_at:
            self._steered_at = None

    @property
    def modality(self) -> str:
        """Modality of the context: "text", "image" for one picture in it, "video" for several."""
        pictures = len(self._pictures)
        return ("text", "image")[pictures] if pictures < 2 else "video"

    @property
    def n_reusable(self) -> int:
        """How many positions of the context the next prompt may continue: those before a steered
        token; none if the memory cannot be rewound."""
        if not self.memory_can_rewind():
            return 0
        return self._n_tokens if self._steered_at is None else self._steered_at

    @property
    def context_full(self) -> bool:
        """Whether the last reply ended because the context did."""
        return self._no_cell_left or self._n_tokens >= self.n_ctx() - 1

    def rewind(self, position: int) -> None:
        """Forget the context from ``position`` (at most ``n_reusable``) on."""
        if not 0 <= position <= self.n_reusable:
            raise ValueError(f"position {position}, expected 0 to {self.n_reusable}")
        self.n_tokens = position  # first: what lies beyond n_tokens is never relied on
        if position == 0:
            self.reset()
            self._ctx.kv_cache_clear()
        elif not self._ctx.kv_cache_seq_rm(-1, position, -1):
            raise SteeringError(f"llama.cpp could not rewind the context to position {position}")
        self._sampled = self._captured = self._decided = self._before = None
        self._requires_eval = True  # the logits are those of a later position

    def reset(self) -> None:
        """Forget the context."""
        super().reset()
        self._sampled = self._captured = self._decided = self._before = None

    def load_state(self, state: Any) -> None:
        """Restore what ``save_state`` returned."""
        self._evaluating = True
        try:
            super().load_state(state)
        finally:
            self._evaluating = False
        ids = self.input_ids[: self._n_tokens]
        self._pictures = np.flatnonzero((ids < 0) & (np.diff(ids, prepend=0) != 0)).tolist()
        self._sampled = self._captured = self._decided = self._before = None
        self._steered_at = None

    def save_state(self) -> Any:
        """Like ``Llama.save_state``, less what a steered token left in the cache."""
        state = super().save_state()
        if self._steered_at is not None:
            state.n_tokens = self._steered_at
            state.scores = state.scores[: self._steered_at]
        return state

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if self.mmproj is None:
            state["chat_handler"] = self._chat_handler
        else:
            del state["chat_handler"]
        return state | {
            "vector": self.vector,
            "mmproj": self.mmproj,
            "way": self.way,
            "force": self.force,
        }

    # Prompt, first token, reply ----------------------------------------------------------------

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As ``Llama.generate``; the first token it yields is steered if the gate opens. Ends where
        pictures have filled the context, which may be sooner than ``n_tokens`` tells."""
        tokens = list(tokens)
        if tokens and tokens[-1] < 0:
            raise ModelError(
                "the prompt ends with an image, expected text after it: llama.cpp has no logits "
                "there. Use a chat template, or add text."
            )
        if self._pictures and tokens != self.input_ids[: self._n_tokens].tolist():
            self._require_text(tokens)
        known = self._captured is not None and self._captured[0] == self.n_tokens
        if self._steered_at is not None or not known:
            self._requires_eval = True
        self._sampled = self._decided = self.last_steering = None
        self._pending, self._no_cell_left = True, False
        mine = self._reading_prompt = object()
        try:
            yield from super().generate(tokens, *args, **kwargs)
        except RuntimeError as error:
            if self._pending or not self._no_cell_for(1, error):  # pending: nothing is said yet
                raise
            self._no_cell_left = True
        finally:
            # A generator that was given up may be collected in the middle of the next reply.
            if self._reading_prompt is mine:
                self._reading_prompt = None

    def eval(self, tokens: Sequence[int]) -> None:
        """As ``Llama.eval``; reads the hidden state of the last token unless ``tokens`` continue
        a reply (are the token that was sampled last)."""
        self._evaluating = True
        try:
            if self.tap.rests and len(tokens) == 1 and tokens[0] == self._sampled:
                super().eval(tokens)  # the usual case, kept short: a token may take 0.4 ms
            elif self._continues_reply(tokens):
                self._eval_reply(tokens)
            else:
                self._eval_prompt(list(tokens))
        finally:
            self._evaluating = False

    def _continues_reply(self, tokens: Sequence[int]) -> bool:
        # More than the token just sampled comes with speculative decoding, else it is a prompt.
        drafted = self.draft_model is not None
        return not tokens or (tokens[0] == self._sampled and (len(tokens) == 1 or drafted))

    def _eval_reply(self, tokens: Sequence[int]) -> None:
        if self.tap.rest():
            super().eval(tokens)
        else:
            with hooks.interrupts_held():
                super().eval(tokens)

    def _eval_prompt(self, tokens: list[int]) -> None:
        self._captured = self._decided = self._before = None
        if self._steered_at is not None:
            tokens = self._forget_steered() + tokens
        if not self.memory_can_rewind() and self._reading_prompt is None:
            # A chat handler's text: it may turn out to be the end of the prompt, and then it has
            # to be taken back and evaluated again, steered.
            self._before = (self._n_tokens, _partial_state(self))
        self._pending = True
        self._probe(tokens, steer=self._reading_prompt is not None and self.way == "inline")

    def _forget_steered(self) -> list[int]:
        """Take back the steered token and what follows it; return the tokens to evaluate anew."""
        assert self._steered_at is not None
        start = self._steered_at if self.memory_can_rewind() else 0
        tokens: list[int] = self.input_ids[start : self._n_tokens].tolist()
        if min(tokens) < 0:
            raise SteeringError(
                "the context holds a picture and a steered token, which the memory of a recurrent "
                "or hybrid model cannot take back. Call reset() and begin anew."
            )
        if start == 0:
            self._ctx.kv_cache_clear()
        self.n_tokens = start
        return tokens

    def _probe(self, tokens: list[int], *, steer: bool) -> None:
        """Evaluate ``tokens`` and keep the hidden state of the last one; with ``steer``, decide
        and steer within the same pass."""
        if not tokens:
            return
        layer, batch = self.vector.layer, self.n_batch
        only_outputs = layer == self.n_layer - 1 and not self._logits_all
        remaining = -(-len(tokens) // batch) if only_outputs else len(tokens)

        def visit(output: LayerOutput) -> None:
            nonlocal remaining
            remaining -= output.n_rows
            if remaining > 0 or output.n_rows == 0:
                return
            last = output.n_rows - 1
            row = output.read_into(self._state, last)
            self._captured = (end, row)
            if steer:
                began = time.perf_counter()
                decision = self._decide(row)
                if decision.alpha > 0:
                    self._steered_at = end - 1
                    np.add(row, self._vector_for(decision.alpha), out=self._steered.values)
                    output.write_from(self._steered, last)
                self._decided = (decision, time.perf_counter() - began)
            self.tap.done()

        start, end = self._n_tokens, self._n_tokens + len(tokens)
        try:
            for first in range(0, len(tokens), batch):  # Ctrl-C acts between batches
                with self.tap.visiting([layer], self.fingerprint.n_embd, visit):
                    super().eval(tokens[first : first + batch])
        except BaseException as error:
            self.n_tokens, self._captured = start, None
            if self._no_cell_for(len(tokens), error):
                raise ValueError(
                    f"Prompt exceeds n_ctx: {end} positions, and more cells than {self.n_ctx()} "
                    "with those that its pictures take"
                ) from error
            if isinstance(error, (RuntimeError, OverflowError)):
                self._require_text(tokens)
            raise
        if self._captured is None or remaining != 0:
            raise SteeringError(
                f"the probe did not see the last prompt token at l_out-{layer} ({remaining} rows "
                "missing). Nothing was generated."
            )

    def _no_cell_for(self, n_tokens: int, error: BaseException) -> bool:
        """Whether ``error`` says that the context is full although there are positions for
        ``n_tokens`` more: with M-RoPE, a picture takes fewer positions than cells."""
        full = str(error) == "llama_decode returned 1"  # llama-cpp-python's LlamaContext.decode
        return full and self._n_tokens + n_tokens <= self.n_ctx()

    def _require_text(self, tokens: list[int]) -> None:
        """Raise ModelError unless all ``tokens`` are of the vocabulary."""
        odd = [token for token in tokens if not 0 <= token < self._n_vocab]
        if odd:
            raise ModelError(
                f"the prompt has token id {odd[0]}, expected ids from 0 to {self._n_vocab - 1}: "
                "pictures enter through a chat handler."
            )

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SteeringSampler(super()._init_sampler(*args, **kwargs), self)

    def _steer_first(self) -> None:
        """Steer before the first token of a reply is sampled."""
        self._reading_prompt = None
        self._evaluating = True
        try:
            self._steer()
        except BaseException:
            self._sampler = None  # Llama.sample would go on with one that it made for this call
            raise
        finally:
            self._evaluating = False
        self._pending = False  # after a failure, the next sample must not go unsteered

    def _steer(self) -> None:
        began = time.perf_counter()
        if self._captured is None or self._captured[0] != self._n_tokens:
            raise SteeringError(
                "no hidden state was read for the last prompt token. Nothing was generated."
            )
        row = self._captured[1]
        if self._decided is not None:
            decision, seconds = self._decided
        else:
            decision = self._decide(row)
            if decision.alpha > 0 and self._before is not None:
                decision = self._evaluate_again(*self._before)
            elif decision.alpha > 0:
                self._decode_last_again(row, decision)
            seconds = time.perf_counter() - began
        steered = decision.alpha > 0
        self.last_steering = Steering(
            self.modality,
            decision.t,
            decision.z,
            decision.gate,
            decision.alpha,
            self.vector.layer,
            self.way if steered else None,
            1000 * seconds,
        )

    def _decide(self, row: Rows) -> Decision:
        geometry, modality = self.vector.geometry, self.modality
        if modality == "video" and modality not in geometry.spreads:
            modality = "image"
        if modality not in geometry.spreads:
            raise ModelError(
                f"the prompt has media ({modality}), but the vector was measured on "
                f"{', '.join(self.vector.modalities)} only. Convert with --mmproj."
            )
        try:
            return decide(row, geometry, modality)
        except FloatingPointError as error:
            raise SteeringError(f"{error}. Nothing was generated.") from error

    def _vector_for(self, alpha: float) -> Rows:
        return steering_vector(self.vector.geometry, alpha)

    def _decode_last_again(self, row: Rows, decision: Decision) -> None:
        """Take the last prompt token back and decode it alone, steered."""
        token = int(self.input_ids[self._n_tokens - 1])
        self._rewind_one()
        self._steered_at = self._n_tokens
        addition, layer = self._vector_for(decision.alpha), self.vector.layer
        after: list[Rows] = []

        def visit(output: LayerOutput) -> None:
            if self.way == "inline":
                output.write(0, output.read() + addition)
            else:
                self.control_vector.find(output)
            after.append(output.read_into(self._steered, 0))

        with self.tap.visiting([layer], self.fingerprint.n_embd, visit):
            if self.way == "inline":
                super().eval([token])
            else:
                self.control_vector.set(layer, addition)
                try:
                    super().eval([token])
                finally:
                    self.control_vector.silence()
        self._require_moved(row, after, decision.alpha)

    def _require_moved(self, before: Rows, after: list[Rows], alpha: float) -> None:
        """Raise SteeringError unless the hidden state moved along the direction by about alpha:
        some builds of llama.cpp ignored a changed control vector without a word."""
        if not after:
            raise SteeringError(f"the probe did not see l_out-{self.vector.layer} when steered")
        g = self.vector.geometry
        moved = float((after[-1] - before) @ g.unit) / g.distance
        expected = alpha / g.distance
        # Alone and in a batch, a token's state differs by rounding.
        if not abs(moved - expected) <= 0.5 * expected + ROUNDING:
            raise SteeringError(
                f"steering by alpha = {alpha:.4g} moved the hidden state by {moved:.3g} D, "
                f"expected {expected:.3g} D: this llama.cpp does not apply control vectors."
            )

    def _rewind_one(self) -> None:
        self.n_tokens = self._n_tokens - 1
        if not self._ctx.kv_cache_seq_rm(-1, self._n_tokens, -1):
            raise SteeringError("llama.cpp could not take the last prompt token back")

    def _evaluate_again(self, position: int, state: Any) -> Decision:
        """Take all text from ``position`` on back and evaluate it again, steered in the pass."""
        tokens = self.input_ids[position : self._n_tokens].tolist()
        if position == 0:
            self._ctx.kv_cache_clear()
        else:
            _restore_partial_state(self, state)
            if not self._ctx.kv_cache_seq_rm(-1, position, -1):
                raise SteeringError("llama.cpp could not take the end of the prompt back")
        self.n_tokens = position
        self._probe(tokens, steer=True)
        assert self._decided is not None
        return self._decided[0]

    def _self_test(self) -> None:
        """Decode one token plainly and one steered, so that a model which cannot be probed or
        steered is refused when it is loaded, not in the middle of a chat."""
        g, token = self.vector.geometry, max(self.token_bos(), 0)
        try:
            self.eval([token])
            super().sample(temp=0.0)
            if self.last_steering is None:
                raise SteeringError("llama-cpp-python sampled a token in a way that is not hooked")
            assert self._captured is not None
            self._evaluating = True
            if self.memory_can_rewind():
                # With cvec, set first and then written over: what is silent must stay so.
                for alpha in (g.distance, 0.0) if self.way == "cvec" else (g.distance,):
                    self._decode_last_again(self._captured[1], Decision(0.0, 0.0, 1.0, alpha))
        except (SteeringError, RuntimeError) as error:
            raise ModelError(
                f"{self.model_path}: this model ({self.fingerprint.architecture}) cannot be "
                f"steered at block {self.vector.layer}: {error}"
            ) from error
        finally:
            self._evaluating = False
        self.reset()
        self._ctx.kv_cache_clear()
        self.last_steering = None

    # Chat --------------------------------------------------------------------------------------

    @property
    def chat_handler(self) -> Callable[..., Any] | None:
        """The chat handler, its completions carrying ``mars``: what steering did."""
        if self._chat_handler is None and self.chat_format is None:
            return None  # Llama.__init__ has yet to choose a format
        handler = (
            self._chat_handler
            or self._chat_handlers.get(self.chat_format)
            or llama_chat_format.get_chat_completion_handler(self.chat_format)
        )
        return ReportingChatHandler(handler)

    @chat_handler.setter
    def chat_handler(self, handler: Any) -> None:
        if isinstance(handler, ReportingChatHandler):
            handler = handler.handler
        self._chat_handler = handler


class SteeringSampler:
    """The sampler of a SteeredLlama: all of its tokens come from here, and the first one of a reply
    is steered. (``Llama.sample`` would do for that, but to hand on its sixteen arguments takes
    longer than all the rest that is added to a token.)"""

    def __init__(self, sampler: Any, llama: SteeredLlama) -> None:
        self.sampler, self.llama = sampler, weakref.ref(llama)

    def sample(self, context: Any, index: int) -> int:
        llama = self.llama()
        assert llama is not None
        if llama._pending:
            llama._steer_first()
        token: int = self.sampler.sample(context, index)
        llama._sampled = token
        return token


class ReportingChatHandler:
    """A chat handler whose completions carry ``last_steering`` under the key ``mars``; when
    streaming, in the last chunk."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(self.handler, name)

    def __call__(self, *, llama: SteeredLlama, **kwargs: Any) -> Any:
        reply = self.handler(llama=llama, **kwargs)
        if isinstance(reply, dict):
            return reply | {"mars": _report(llama)}
        return self._stream(llama, reply)

    @staticmethod
    def _stream(llama: SteeredLlama, chunks: Iterator[Any]) -> Iterator[Any]:
        for chunk in chunks:
            if any(choice.get("finish_reason") for choice in chunk["choices"]):
                chunk = chunk | {"mars": _report(llama)}
            yield chunk


def _report(llama: SteeredLlama) -> dict[str, Any] | None:
    return asdict(llama.last_steering) if llama.last_steering is not None else None


def load_mmproj(llama: HookedLlama, handler: Any) -> None:
    """Load the handler's mmproj now rather than at the first picture.

    Raises ModelError if it is not one, or does not fit the model.
    """
    try:
        handler._init_mtmd_context(llama)
    except ValueError as error:
        raise ModelError(
            f"{handler.clip_model_path}: llama.cpp could not load this mmproj for the model "
            f"(n_embd {llama.n_embd()}): {error}. Is it the mmproj that belongs to this model?"
        ) from error


def fingerprint(llama: HookedLlama) -> ModelFingerprint:
    """What identifies a loaded model. The tokenizer's hash is over the texts of all tokens that
    are in use, by id; padding that converters add does not count."""
    tokens = hashlib.sha256()
    vocab = lib.llama_model_get_vocab(llama.model)
    for token in range(llama.n_vocab()):
        if not lib.llama_vocab_get_attr(vocab, token) & lib.LLAMA_TOKEN_ATTR_UNUSED:
            tokens.update(lib.llama_vocab_get_text(vocab, token) + b"\n")
    template = llama.metadata.get("tokenizer.chat_template", "")
    return ModelFingerprint(
        architecture=llama.metadata.get("general.architecture", ""),
        name=llama.metadata.get("general.name", ""),
        n_layer=llama.n_layer,
        n_embd=llama.n_embd(),
        quantization=hooks.quantization_name(llama.metadata.get("general.file_type")),
        chat_template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else "",
        tokenizer_sha256=tokens.hexdigest(),
    )


def _partial_state(llama: HookedLlama) -> Any:
    """The part of the memory that cannot be rewound (recurrent state) of sequence 0."""
    flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    size = lib.llama_state_seq_get_size_ext(llama.ctx, 0, flags)
    buffer = (lib.ctypes.c_uint8 * size)()
    if lib.llama_state_seq_get_data_ext(llama.ctx, buffer, size, 0, flags) != size:
        raise SteeringError("llama.cpp could not copy the recurrent state")
    return buffer


def _restore_partial_state(llama: HookedLlama, buffer: Any) -> None:
    flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    if lib.llama_state_seq_set_data_ext(llama.ctx, buffer, len(buffer), 0, flags) != len(buffer):
        raise SteeringError("llama.cpp could not restore the recurrent state")
