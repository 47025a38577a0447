"""Loads the parts of a SteeredLlama: the model, its mmproj, its template and its vectors; with the
parameters that ``Llama.__init__`` has no keyword for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError, VectorError
from mars_gguf.runtime.compat import LlamaContext, suppress_stdout_stderr
from mars_gguf.runtime.finding import find_vector
from mars_gguf.runtime.mtmd import Projector
from mars_gguf.runtime.rpc import use_servers
from mars_gguf.runtime.tap import Tap
from mars_gguf.runtime.template import ChatTemplate, chat_template
from mars_gguf.runtime.urls import load_url
from mars_gguf.runtime.weights import require_gguf
from mars_gguf.steering import Policy
from mars_gguf.vectors import ModelFingerprint, Vector, read_vector
from mars_gguf.vectors.shelf import AUTO

ALL_LAYERS = -1
AnyVector = str | os.PathLike[str] | Vector


def read_vectors(
    given: AnyVector | Mapping[str, AnyVector] | None,
    model_path: str,
    arguments: Mapping[str, Any],
    *,
    force: bool,
) -> dict[str, Vector]:
    """The vectors that a model is to be steered by, by name, checked; for "auto", the one that
    belongs to it as it is loaded with ``arguments``. Raises VectorError."""
    if given is None:
        return {}
    named = given if isinstance(given, Mapping) else {"mars": given}
    vectors = {}
    for name, vector in named.items():
        if vector == AUTO:
            vector = _found(model_path, arguments, force=force)
        vectors[name] = vector if isinstance(vector, Vector) else read_vector(vector)
    for vector in vectors.values():
        vector.check()
    return vectors


def _found(model_path: str, arguments: Mapping[str, Any], *, force: bool) -> str:
    if force:
        raise VectorError(
            "a vector that is found by itself must fit by itself: give its file, or no force"
        )
    lora = arguments.get("lora_path"), arguments.get("lora_scale", 1.0)
    return find_vector(model_path, arguments["mmproj"], lora=lora, reasoning=arguments["reasoning"])


def policies_of(
    vectors: Mapping[str, Vector], model: ModelFingerprint, *, force: bool
) -> tuple[Policy, ...]:
    """The policies of ``vectors``, under their names. Raises VectorError for one that was made for
    another model; ``force`` allows some differences (`Vector.require_model`)."""
    for vector in vectors.values():
        vector.require_model(model, force=force)
    return tuple(vector.policy(name) for name, vector in vectors.items())


def uses_plain_handler(
    plain: Mapping[str, Any], written: Mapping[str, Any], vectors: Mapping[str, Vector]
) -> bool:
    """Whether prompts are written by a chat handler of llama-cpp-python's among the ``plain``
    arguments. Raises ModelError for one beside arguments that say how prompts are ``written``, or
    beside a vector of a model that thinks: such handlers do not keep to it."""
    if not (plain.get("chat_handler") or plain.get("chat_format")):
        return False
    if any(written.values()):
        raise ModelError(f"give {', '.join(written)}, or chat_handler or chat_format: not both")
    for vector in vectors.values():
        if vector.model.reasoning:
            raise ModelError(
                f"the vector was measured with reasoning {vector.model.reasoning!r}, which no "
                "chat_handler or chat_format of llama-cpp-python's keeps to: leave it out, and "
                "prompts are written by the model's own template"
            )
    return True


def load(
    llama: Llama, extras: Extras, model_path: str, rpc_servers: str | None, arguments: Any
) -> None:
    """Run ``Llama.__init__`` with ``arguments``, completed by ``extras``. Raises ModelError for a
    file that llama.cpp does not load."""
    require_gguf(model_path)
    if arguments.get("n_ctx"):
        # llama.cpp pads the context to a multiple of 256, llama-cpp-python's buffers are not.
        arguments["n_ctx"] = -(-arguments["n_ctx"] // 256) * 256
    if rpc_servers:
        use_servers(rpc_servers)
        arguments["n_gpu_layers"] = arguments.get("n_gpu_layers") or ALL_LAYERS
    try:
        Llama.__init__(llama, model_path, **arguments)
    except ValueError as error:
        if extras.stopped:
            raise extras.stopped[0] from None
        if "llama_context" in str(error):
            raise ModelError(
                f"{model_path}: llama.cpp made no context of n_ctx = {arguments.get('n_ctx')} "
                f"({error}). Is there too little memory (a smaller n_ctx, -c, takes less), or an "
                "option that the model cannot have? verbose=True shows what llama.cpp says."
            ) from error
        raise ModelError(
            f"{model_path}: llama.cpp could not load this model ({error}). "
            "Is the file whole, and its architecture known to this llama.cpp? "
            "verbose=True shows what llama.cpp says."
        ) from error
    if len(llama.input_ids) < llama.n_ctx():  # where the context is as long as the model's own
        llama.input_ids = np.zeros(llama.n_ctx(), np.intc)
    extras.tap.n_embd = llama.n_embd()


def add_projector(llama: Llama, mmproj: str, *, allow_local_files: bool) -> Projector:
    """The projector of ``llama``, whose micro-batches are made as large as pictures need it. Raises
    ModelError."""
    require_gguf(mmproj)
    projector = Projector(mmproj, llama, verbose=llama.verbose)
    llama._stack.enter_context(contextlib.closing(projector))
    projector.load = partial(load_url, allow_local_files=allow_local_files)
    # Some models must decode a whole picture in one micro-batch.
    needed = min(projector.most_tokens_at_once(), lib.llama_n_ctx(llama.ctx))
    if needed > lib.llama_n_ubatch(llama.ctx):
        n_batch = max(llama.context_params.n_batch, needed)
        renew_context(llama, n_ubatch=needed, n_batch=n_batch)
    return projector


def template_of(
    llama: Llama, written: Mapping[str, Any], vectors: Mapping[str, Vector], *, parse_special: bool
) -> ChatTemplate:
    """How prompts are written, by the arguments ``written``, or with the reasoning that the vectors
    were measured with. Raises ModelError for thoughts that the template does not know."""
    tokens, pictures = (llama.token_bos(), llama.token_eos()), bool(written["mmproj"])

    def text(token: int) -> str:
        if token == -1:
            return ""
        # As llama-cpp-python does: libmtmd adds these tokens by itself.
        if pictures:
            return llama.detokenize([token]).decode(errors="ignore")
        vocab = lib.llama_model_get_vocab(llama.model)
        return lib.llama_vocab_get_text(vocab, token).decode(errors="ignore")

    asked = written["reasoning"]
    measured: Any = next((vector.model.reasoning for vector in vectors.values()), None)
    template = chat_template(
        llama.metadata,
        written["template"],
        (text(tokens[0]), text(tokens[1])),
        pictures=pictures,
        eos_id=tokens[1],
        kwargs=written["chat_template_kwargs"],
        reasoning=asked or measured or None,
    )
    if asked in ("thought", "answer") and template.reasoning is None:
        raise ModelError(
            f"reasoning: found {asked!r}, but this model's chat template knows no thoughts. Leave "
            "it out."
        )
    template.as_text = None if parse_special else llama.vocabulary.as_text
    return template


class Extras:
    """The further parameters of a model that is being loaded: the eval callback of ``tap``, fields
    of ``llama_context_params`` to override, and whom its progress is told. ``stopped``: by what
    that raised."""

    def __init__(
        self,
        tap: Tap,
        overrides: Mapping[str, Any] | None,
        progress: Callable[[float], object] | None,
    ) -> None:
        self.tap, self.overrides, self._progress = tap, dict(overrides or {}), progress
        self.stopped: list[BaseException] = []
        self._callback: Any = lib.llama_progress_callback(self._report) if progress else None

    def add_to(self, model_params: Any, context_params: Any) -> None:
        """Complete ``llama_model_params`` and ``llama_context_params``."""
        if self._callback is not None:
            model_params.progress_callback = self._callback
        self.tap.install(context_params)
        for name, value in self.overrides.items():
            setattr(context_params, name, value)

    def _report(self, share: float, _user_data: int) -> bool:
        try:
            assert self._progress is not None
            self._progress(share)
        except BaseException as error:  # Ctrl-C, too; it would be lost in ctypes
            self.stopped.append(error)
        return not self.stopped


def renew_context(llama: Llama, **fields: int) -> None:
    """Put an empty context in the place of ``llama``'s, with other ``fields`` of its parameters.
    Raises ModelError if llama.cpp cannot make it."""
    if llama.lora_path:
        wanted = ", ".join(f"{name} {value} or more" for name, value in fields.items())
        raise ModelError(f"a LoRA adapter is lost where a context is renewed: give {wanted}")
    for name, value in fields.items():
        setattr(llama.context_params, name, value)
    llama._ctx.close()
    try:
        with suppress_stdout_stderr(disable=llama.verbose):
            context = LlamaContext(
                model=llama._model, params=llama.context_params, verbose=llama.verbose
            )
    except ValueError as error:
        wanted = ", ".join(f"{name} {value}" for name, value in fields.items())
        raise ModelError(
            f"llama.cpp could not make a context with {wanted}: most likely there is not "
            "enough memory. Take a smaller model, or less context."
        ) from error
    llama._ctx = llama._stack.enter_context(contextlib.closing(context))
    llama._n_ctx = llama.n_ctx()
    llama.n_tokens, llama.input_ids = 0, np.zeros(llama._n_ctx, np.intc)
