"""A model with a tap: its residual stream can be seen and changed, and it knows how its prompts are
written and its pictures shown."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.reasoning import Reasoning
from mars_gguf.runtime.alone import alone
from mars_gguf.runtime.compat import LlamaContext, suppress_stdout_stderr
from mars_gguf.runtime.control_vector import ControlVector
from mars_gguf.runtime.mtmd import Chunk, Projector
from mars_gguf.runtime.rpc import use_servers
from mars_gguf.runtime.tap import Rows, Tap
from mars_gguf.runtime.template import (
    ADVICE,
    ChatTemplate,
    Messages,
    Rendered,
    chat_template,
)
from mars_gguf.runtime.weights import weights_sha256
from mars_gguf.vectors import ModelFingerprint

AT_EXIT = 5.0  # seconds
ALL_LAYERS = -1


class _ContextParams:
    """Data descriptor: adds the eval callback to the context parameters that ``Llama.__init__``
    assigns, for which it has no keyword."""

    def __set__(self, llama: TappedLlama, params: Any) -> None:
        llama.tap.install(params)
        for name, value in llama.context_overrides.items():
            setattr(params, name, value)
        llama.__dict__["context_params"] = params

    def __get__(self, llama: TappedLlama, owner: type | None = None) -> Any:
        return llama.__dict__["context_params"]


class _ModelParams:
    """Data descriptor: adds the progress callback to the model parameters, likewise."""

    def __set__(self, llama: TappedLlama, params: Any) -> None:
        if llama.on_load is not None:
            params.progress_callback = llama.on_load
        llama.__dict__["model_params"] = params

    def __get__(self, llama: TappedLlama, owner: type | None = None) -> Any:
        return llama.__dict__["model_params"]


class TappedLlama(Llama):
    """A ``Llama`` whose residual stream can be read and changed.

    Takes every argument of ``llama_cpp.Llama``, and:
    mmproj: multimodal projector (GGUF).
    template: how prompts are written, one of `formats.HANDLERS`; default: as the GGUF says.
    chat_template_kwargs: variables for the chat template.
    reasoning: whether the model thinks, and which token counts (mars_gguf.reasoning); default: as
        the chat template suggests. ``template.reasoning`` is what came of it.
    context_overrides: fields of ``llama_context_params`` that ``Llama`` has no keyword for.
    rpc_servers: "HOST:PORT,...", machines that layers go to by llama.cpp's RPC backend; without
        ``n_gpu_layers`` all of them do. See `mars_gguf.runtime.rpc`.
    progress: called with the share of the model that is loaded, 0 to 1.
    compiled: whether the tap answers in C; default: where that was built.

    ``n_layer`` is the number of blocks; their indices are 0 to n_layer - 1. ``lock`` is held by
    whatever uses the context: threads take turns. Raises ModelError for files that llama.cpp does
    not load or that do not fit.
    """

    input_ids: Any
    context_params: Any = _ContextParams()
    model_params: Any = _ModelParams()

    def __init__(
        self,
        model_path: str,
        *,
        mmproj: str | None = None,
        template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        reasoning: Reasoning | None = None,
        context_overrides: dict[str, Any] | None = None,
        rpc_servers: str | None = None,
        progress: Callable[[float], object] | None = None,
        compiled: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.lock, self.closed = threading.RLock(), False
        self.tap = Tap(compiled=compiled)
        self.context_overrides = context_overrides or {}
        self.projector: Projector | None = None
        for path in filter(None, (model_path, mmproj)):
            require_gguf(path)
        if kwargs.get("n_ctx"):
            # llama.cpp pads the context to a multiple of 256, llama-cpp-python's buffers are not.
            kwargs["n_ctx"] = -(-kwargs["n_ctx"] // 256) * 256
        if rpc_servers:
            use_servers(rpc_servers)
            kwargs["n_gpu_layers"] = kwargs.get("n_gpu_layers") or ALL_LAYERS
        self._load(model_path, progress, kwargs)
        if len(self.input_ids) < self.n_ctx():  # where the context is as long as the model's own
            self.input_ids = np.zeros(self.n_ctx(), np.intc)
        self.n_layer: int = lib.llama_model_n_layer(self.model)
        self.tap.n_embd = self.n_embd()
        self.control_vector = ControlVector(self.ctx, self.n_layer, self.n_embd())
        if mmproj is not None:
            self.projector = Projector(mmproj, self, verbose=self.verbose)
            self._make_room_for_pictures()
        self.template = self._template(template, chat_template_kwargs, reasoning)
        if reasoning in ("thought", "answer") and self.template.reasoning is None:
            raise ModelError(
                f"reasoning: found {reasoning!r}, but this model's chat template knows no "
                "thoughts. Leave it out."
            )
        handler = kwargs.get("chat_handler")
        self.fingerprint = self._fingerprint(mmproj or getattr(handler, "clip_model_path", None))
        # Closed before the interpreter takes apart what Llama.close needs.
        atexit.register(_close, weakref.ref(self))

    def _load(
        self, model_path: str, progress: Callable[[float], object] | None, kwargs: dict[str, Any]
    ) -> None:
        stopped: list[BaseException] = []

        def report(share: float, _user_data: int) -> bool:
            try:
                assert progress is not None
                progress(share)
            except BaseException as error:  # Ctrl-C, too; it would be lost in ctypes
                stopped.append(error)
            return not stopped

        self.on_load: Any = lib.llama_progress_callback(report) if progress is not None else None
        try:
            super().__init__(model_path, **kwargs)
        except ValueError as error:
            if stopped:
                raise stopped[0] from None
            raise ModelError(
                f"{model_path}: llama.cpp could not load this model ({error}). "
                "Is the file whole, and its architecture known to this llama.cpp? "
                "verbose=True shows what llama.cpp says."
            ) from error

    def _make_room_for_pictures(self) -> None:
        """Raise n_ubatch where the model must decode a whole picture in one micro-batch."""
        assert self.projector is not None
        needed = min(self.projector.most_tokens_at_once(), lib.llama_n_ctx(self.ctx))
        if needed > lib.llama_n_ubatch(self.ctx):
            self.renew_context(n_ubatch=needed, n_batch=max(self.context_params.n_batch, needed))

    def renew_context(self, **fields: int) -> None:
        """Put an empty context in the place of this one, with other ``fields`` of its parameters.
        Raises ModelError if llama.cpp cannot make it."""
        if self.lora_path:
            wanted = ", ".join(f"{name} {value} or more" for name, value in fields.items())
            raise ModelError(f"a LoRA adapter is lost where a context is renewed: give {wanted}")
        for name, value in fields.items():
            setattr(self.context_params, name, value)
        self._ctx.close()  # type: ignore[has-type]
        try:
            with suppress_stdout_stderr(disable=self.verbose):
                context = LlamaContext(
                    model=self._model, params=self.context_params, verbose=self.verbose
                )
        except ValueError as error:
            wanted = ", ".join(f"{name} {value}" for name, value in fields.items())
            raise ModelError(
                f"llama.cpp could not make a context with {wanted}: most likely there is not "
                "enough memory. Take a smaller model, or less context."
            ) from error
        self._ctx = self._stack.enter_context(contextlib.closing(context))
        self._n_ctx = self.n_ctx()
        self.n_tokens, self.input_ids = 0, np.zeros(self._n_ctx, np.intc)
        self.control_vector = ControlVector(self.ctx, self.n_layer, self.n_embd())

    def _template(
        self, name: str | None, kwargs: Mapping[str, Any] | None, reasoning: Reasoning | None
    ) -> ChatTemplate:
        tokens = self.token_bos(), self.token_eos()
        pictures = self.projector is not None

        def text(token: int) -> str:
            if token == -1:
                return ""
            # As llama-cpp-python does: libmtmd adds these tokens by itself.
            if pictures:
                return self.detokenize([token]).decode(errors="ignore")
            vocab = lib.llama_model_get_vocab(self.model)
            return lib.llama_vocab_get_text(vocab, token).decode(errors="ignore")

        bos, eos = map(text, tokens)
        options: Any = {"kwargs": kwargs, "reasoning": reasoning}
        return chat_template(
            self.metadata, name, (bos, eos), pictures=pictures, eos_id=tokens[1], **options
        )

    def _fingerprint(self, mmproj: str | None) -> ModelFingerprint:
        """What identifies the model. The tokenizer's hash is over the texts of all tokens that are
        in use, by id; padding that converters add does not count."""
        tokens = hashlib.sha256()
        vocab = lib.llama_model_get_vocab(self.model)
        for token in range(self.n_vocab()):
            if not lib.llama_vocab_get_attr(vocab, token) & lib.LLAMA_TOKEN_ATTR_UNUSED:
                tokens.update(lib.llama_vocab_get_text(vocab, token) + b"\n")
        return ModelFingerprint(
            architecture=self.metadata.get("general.architecture", ""),
            name=self.metadata.get("general.name", ""),
            n_layer=self.n_layer,
            n_embd=self.n_embd(),
            quantization=quantization_name(self.metadata.get("general.file_type")),
            chat_template_sha256=self.template.sha256,
            tokenizer_sha256=tokens.hexdigest(),
            chat_template_kwargs=json.dumps(self.template.kwargs, sort_keys=True),
            weights_sha256=self._weights_sha256(),
            mmproj_sha256=weights_sha256([mmproj]) if mmproj else "",
            reasoning=self.template.reasoning or "",
        )

    def _weights_sha256(self) -> str:
        if not self.lora_path:
            return weights_sha256([self.model_path])
        both = weights_sha256([self.model_path, self.lora_path])
        return hashlib.sha256(f"{both} {self.lora_scale}".encode()).hexdigest()

    @alone
    def chunks(self, messages: Messages, **kwargs: Any) -> list[Chunk]:
        """What the prompt of ``messages`` is made of: runs of text tokens and pictures.

        Raises PromptError for messages that do not become a prompt.
        """
        return self.chunks_of(self.template.render(messages, **kwargs))

    @alone
    def chunks_of(self, rendered: Rendered) -> list[Chunk]:
        """What a prompt is made of, likewise."""
        if self.projector is None:
            response = rendered.without_media()
            add_bos = not response.added_special
            return [tuple(self.tokenize(response.prompt.encode(), add_bos=add_bos, special=True))]
        self.require_text_fits(rendered.text)
        chunks = self.projector.tokenize(rendered.text, rendered.media)
        if not chunks or not isinstance(chunks[-1], tuple):
            raise PromptError(
                "the chat template puts nothing after a picture, where llama.cpp has no logits. "
                f"{ADVICE}."
            )
        return chunks

    def require_text_fits(self, text: str) -> None:
        """Called with the text of every prompt with pictures before it is tokenized, for subclasses
        to refuse it."""

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that the model was trained with."""
        return int(lib.llama_model_n_ctx_train(self.model))

    def memory_can_rewind(self) -> bool:
        """Whether single tokens can be taken back: not from recurrent or hybrid memory."""
        model = self.model
        return not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))

    def memory_can_rewind_far(self) -> bool:
        """Whether any number of tokens can: neither where the memory lets go of what has left
        sliding windows."""
        lets_go = self.window > 0 and not self.context_params.swa_full
        return self.memory_can_rewind() and not lets_go

    @property
    def window(self) -> int:
        """Tokens that the sliding windows span, 0 without such."""
        return int(lib.llama_model_n_swa(self.model))

    def close(self) -> None:
        """Free the model, if it was loaded."""
        with self.lock:
            self.closed = True
            projector, self.projector = self.__dict__.get("projector"), None
            if projector is not None:
                projector.close()
            if "_stack" in self.__dict__:
                super().close()

    def give_up(self) -> None:
        """End the reply that another thread is at, as soon as it comes to its next token."""

    def __del__(self) -> None:
        if "lock" in self.__dict__:  # else __init__ was not begun
            self.close()


def _close(reference: weakref.ref[TappedLlama]) -> None:
    llama = reference()
    if llama is not None:
        llama.give_up()
        # A thread that is still within a batch keeps it: the process ends all the same.
        if llama.lock.acquire(timeout=AT_EXIT):
            llama.close()


def require_gguf(path: str) -> None:
    """Raise ModelError unless ``path`` is a file that starts like a GGUF."""
    file = Path(path)
    if not file.exists():
        raise ModelError(f"{path}: no such file")
    if not file.is_file():
        raise ModelError(f"{path}: not a file. Give a model in GGUF format.")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelError(
            f"{path}: not a GGUF file (it starts with {magic!r}, expected b'GGUF'). "
            "Give a model in GGUF format."
        )


def logits(llama: Llama) -> Rows:
    """Logits of the last decoded token, a copy, [n_vocab]."""
    pointer = lib.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, (llama.n_vocab(),)).copy()


_FILE_TYPES = {
    getattr(lib, name): re.sub(r"^LLAMA_FTYPE_(MOSTLY_|ALL_)?", "", name)
    for name in dir(lib)
    if name.startswith("LLAMA_FTYPE_")
}


def quantization_name(file_type: str | None) -> str:
    """``general.file_type`` as people write it: "15" -> "Q4_K_M"; "" if not known."""
    return _FILE_TYPES.get(int(file_type), "") if file_type and file_type.isdecimal() else ""
