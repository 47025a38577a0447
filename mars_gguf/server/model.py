"""The models that are served: loaded by ``llama_cpp.server`` from its settings, as SteeredLlama."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import llama_cpp

from mars_gguf.errors import MarsError, ModelError, SteeringError
from mars_gguf.files import sha256
from mars_gguf.hub import download
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.mtmd import load_url
from mars_gguf.runtime.probe import self_test
from mars_gguf.server import checks
from mars_gguf.server.checks import RequestError
from mars_gguf.server.compat import LlamaProxy
from mars_gguf.server.exchange import exchange, outside_exchange
from mars_gguf.server.settings import DEFAULT_VECTOR, RENDERED_FORMATS, TEMPLATES, ModelSettings
from mars_gguf.server.texts import Vocabulary
from mars_gguf.vectors import Vector, read_vector

DETOKENIZED = 1024  # tokens at a time


@dataclass(frozen=True)
class NamedVector:
    """A vector as clients see it: by the name and the hash of its file."""

    name: str
    sha256: str
    vector: Vector

    @classmethod
    def read(cls, path: str) -> NamedVector:
        vector = read_vector(path)
        return cls(Path(path).stem, sha256(path), vector)


class ServedLlama(SteeredLlama):
    """A SteeredLlama that takes note of what it does in the current exchange, stops when its
    client is gone, and can change between vectors."""

    _stopped = False

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What is known of a text before it is tokenized."""
        return Vocabulary.of(self)

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        super().__init__(model_path, **kwargs)
        if self.projector is not None:
            self.projector.load = _load_checked

    def _set_n_tokens(self, value: int) -> None:
        # llama-cpp-python moves it after every batch.
        current = exchange.get()
        if value > self._n_tokens and current is not None:
            self._stopped = current.client_gone.is_set()
            current.require_client()
        super()._set_n_tokens(value)

    n_tokens = property(attrgetter("_n_tokens"), _set_n_tokens, doc=SteeredLlama.n_tokens.__doc__)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As ``Llama.tokenize``. Raises ValueError for a text that cannot fit the context, and
        RequestError for one that llama.cpp would take very long over, or end the process."""
        self.vocabulary.require_fits(text, self.n_ctx(), special)
        tokens: list[int] = super().tokenize(text, add_bos, special)
        return tokens

    def text_of(self, tokens: list[int]) -> bytes:
        """As ``Llama.detokenize``, whose time grows with the square of what it is given."""
        pieces = range(0, len(tokens), DETOKENIZED)
        return b"".join(self.detokenize(tokens[at : at + DETOKENIZED]) for at in pieces)

    def require_text_fits(self, text: str) -> None:
        """As for `tokenize`."""
        self.vocabulary.require_fits(text.encode(), self.n_ctx(), True)

    def prepare(self, vector: Vector) -> None:
        """Make ready for the next request, to be steered by ``vector``."""
        if vector is not self.vector or self._stopped:
            self.rewind(0)
            self.vector, self._stopped = vector, False

    def create_completion(
        self, *args: Any, grammar: Any = None, logit_bias: Any = None, **kwargs: Any
    ) -> Any:
        """As ``Llama.create_completion``. Raises RequestError for what llama.cpp would end the
        process over. What grammars come from (text, schemas, tools) meets here."""
        if grammar is not None:
            checks.require_grammar(self, grammar._grammar)
        if logit_bias is not None:
            checks.require_logit_bias(self, logit_bias)
        return super().create_completion(*args, grammar=grammar, logit_bias=logit_bias, **kwargs)

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        """As ``SteeredLlama.generate``. Raises RequestError for a prompt of no tokens."""
        if not tokens:
            raise RequestError("prompt: found nothing, expected text")
        return super().generate(tokens, *args, **kwargs)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As ``SteeredLlama.sample``."""
        token = super().sample(*args, **kwargs)
        current = exchange.get()
        if current is not None:
            if self.last_steering is None:
                raise SteeringError("a token was sampled that steering had not seen")
            if current.tokens == 0:
                current.first_token = time.perf_counter()
            current.steering = self.last_steering
            current.tokens += 1
        return token


class SteeredProxy(LlamaProxy):
    """The LlamaProxy of ``llama_cpp.server``, each model with its own vectors.

    All models and vectors are loaded once at the start, so that one which does not fit is found
    then. Raises MarsError.
    """

    def __init__(self, models: list[ModelSettings]) -> None:
        self.vectors: dict[str | None, dict[str, NamedVector]] = {
            settings.model_alias: {
                name: NamedVector.read(path)
                for name, path in ({DEFAULT_VECTOR: settings.vector} | settings.vectors).items()
            }
            for settings in models
        }
        for settings in models[1:]:
            self.load_llama_from_model_settings(settings).close()
        super().__init__(models)

    def settings(self, model: str | None) -> ModelSettings:
        """Settings of the model that a request means by ``model``."""
        settings: ModelSettings = self._model_settings_dict.get(model, self._default_model_settings)
        return settings

    def __call__(self, model: str | None = None) -> ServedLlama:
        try:
            llama: ServedLlama = super().__call__(model)
        except MarsError as error:  # its message names files
            raise RequestError("the model could not be loaded", 500) from error
        vector, current = DEFAULT_VECTOR, exchange.get()
        if current is not None:
            vector, current.model = current.vector, self._current_model_alias
        llama.prepare(self.vectors[self._current_model_alias][vector].vector)
        return llama

    def load_llama_from_model_settings(self, settings: ModelSettings) -> ServedLlama:
        """The model of ``settings``, after each of its vectors was tried on it."""
        vectors = self.vectors[settings.model_alias]
        try:
            for_loader, arguments = _divided(settings)

            class Configured(ServedLlama):
                def __init__(self, model_path: str, **kwargs: Any) -> None:
                    vector, force = vectors[DEFAULT_VECTOR].vector, settings.force_vector
                    super().__init__(model_path, vector=vector, force=force, **arguments | kwargs)

            with outside_exchange(), _llama_class(Configured):
                llama: ServedLlama = LlamaProxy.load_llama_from_model_settings(for_loader)
                if arguments:
                    llama.template.takes("user")  # raises ModelError if it shows no text
                for name, named in vectors.items():
                    _try_vector(llama, name, named.vector, settings)
        except MarsError as error:
            raise type(error)(f"{settings.model_alias}: {error}") from error
        except (AssertionError, ValueError, OSError, ImportError) as error:
            raise ModelError(f"{settings.model_alias}: cannot be loaded: {error}") from error
        # What a completion calls its model if the request names none.
        llama.model_path = settings.model_alias
        return llama


@contextmanager
def _llama_class(replacement: type[SteeredLlama]) -> Iterator[None]:
    """Context manager: ``llama_cpp.server`` loads models of this class, for which it has no
    setting."""
    original = llama_cpp.Llama
    llama_cpp.Llama = replacement
    try:
        yield
    finally:
        llama_cpp.Llama = original


def _divided(settings: ModelSettings) -> tuple[ModelSettings, dict[str, Any]]:
    """``settings`` for the loader of ``llama_cpp.server``, and arguments for SteeredLlama.

    Chat templates and pictures are the latter's, except for formats that only llama-cpp-python can
    write prompts in.
    """
    if settings.chat_format not in RENDERED_FORMATS:
        return settings, {"reasoning": settings.reasoning} if settings.reasoning else {}
    mmproj = settings.clip_model_path
    if mmproj and settings.hf_model_repo_id:
        mmproj = download(settings.hf_model_repo_id, mmproj)
    arguments = {
        "mmproj": mmproj,
        "template": settings.chat_format if settings.chat_format in TEMPLATES else None,
        "chat_template_kwargs": settings.chat_template_kwargs,
        "reasoning": settings.reasoning,
    }
    taken = ("chat_format", "clip_model_path", "chat_template_kwargs")
    return settings.model_copy(update=dict.fromkeys(taken)), arguments


def _load_checked(url: str) -> bytes:
    """The content of a data URL. The server has fetched and checked every picture by then."""
    if not url.startswith("data:"):
        raise SteeringError("a picture that was not checked reached the model")
    return load_url(url)


def _try_vector(llama: ServedLlama, name: str, vector: Vector, settings: ModelSettings) -> None:
    if settings.clip_model_path and "image" not in vector.modalities:
        raise ModelError(
            f"vector {name!r} was measured on {', '.join(vector.modalities)} only, but the model "
            "is served with pictures. Convert with --mmproj, or serve without it."
        )
    vector.require_model(llama.fingerprint, force=settings.force_vector)
    if vector is not llama.vector:
        default = llama.vector
        llama.prepare(vector)
        self_test(llama)
        llama.prepare(default)
