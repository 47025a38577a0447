"""The models that are served: loaded by ``llama_cpp.server`` from its settings, as SteeredLlama."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp

from mars_gguf.errors import MarsError, ModelError, SteeringError
from mars_gguf.files import sha256
from mars_gguf.hub import download
from mars_gguf.modalities import IMAGE
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.mtmd import load_url
from mars_gguf.runtime.selftest import self_test
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import exchange, require_wanted
from mars_gguf.server.internals import load_llama
from mars_gguf.server.settings import DEFAULT_VECTOR, RENDERED_FORMATS, TEMPLATES, ModelSettings
from mars_gguf.vectors import Vector, read_vector


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


class Models:
    """Holds the model that was asked last, of those that are served, and the vectors of all.

    All models and vectors are loaded once at the start, so that one which does not fit is found
    then. Raises MarsError.
    """

    def __init__(self, models: list[ModelSettings]) -> None:
        self._by_alias = {settings.model_alias: settings for settings in models}
        self.vectors = {
            alias: {
                name: NamedVector.read(path)
                for name, path in ({DEFAULT_VECTOR: settings.vector} | settings.vectors).items()
            }
            for alias, settings in self._by_alias.items()
        }
        self._stopped = False  # in the middle of a prompt
        for settings in models[1:]:
            self._load(settings).close()
        self._held = models[0]
        self._llama: SteeredLlama | None = self._load(self._held)

    def close(self) -> None:
        """Frees the model that is held."""
        if self._llama is not None:
            self._llama.close()
        self._llama = None

    def settings(self, model: str | None) -> ModelSettings:
        """The settings of the model that a request means by ``model``; the first if none has that
        alias."""
        return self._by_alias.get(model) or next(iter(self._by_alias.values()))

    def __call__(self, model: str | None = None) -> SteeredLlama:
        """The model that a request means by ``model``, steered by the vector that it asks for.

        Raises RequestError if it cannot be loaded any more.
        """
        settings = self.settings(model)
        if settings is not self._held or self._llama is None:
            self.close()
            try:
                self._held, self._llama = settings, self._load(settings)
            except MarsError as error:  # its message names files
                raise RequestError("the model could not be loaded", 500) from error
        vector, current = DEFAULT_VECTOR, exchange.get()
        if current is not None:
            vector, current.model = current.vector, settings.model_alias
        chosen = self.vectors[settings.model_alias][vector].vector.policy()
        if self._llama.policies != (chosen,) or self._stopped:
            self._llama.context.rewind(0)
            self._llama.steerer.steer_by(chosen)
            self._stopped = False
        return self._llama

    def _load(self, settings: ModelSettings) -> SteeredLlama:
        """Loads a model, and tries each of its vectors on it."""
        vectors = self.vectors[settings.model_alias]
        try:
            for_loader, arguments = _divided(settings)
            own = {"vector": vectors[DEFAULT_VECTOR].vector, "force": settings.force_vector}
            with _loading(own | arguments):
                llama: SteeredLlama = load_llama(for_loader)
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
        # From here on: what was decoded until now belongs to no request.
        llama.on_batch, llama.on_token = self._after_batch, partial(_after_token, llama)
        if llama.projector is not None:
            llama.projector.load = _load_checked
        return llama

    def _after_batch(self) -> None:
        """Ends what nobody waits for any more, and what takes too long."""
        self._stopped = True
        require_wanted()
        self._stopped = False


def _after_token(llama: SteeredLlama) -> None:
    """Notes in the current exchange that there is a token, and what steering did."""
    current = exchange.get()
    if current is None:
        return
    if llama.last_steering is None:
        raise SteeringError("a token was sampled that steering had not seen")
    if current.tokens == 0:
        current.first_token = time.perf_counter()
    current.steering = llama.last_steering
    current.tokens += 1


@contextmanager
def _loading(arguments: dict[str, Any]) -> Iterator[None]:
    """Context manager: ``llama_cpp.server`` loads models as SteeredLlama, with ``arguments`` for
    which it has no settings."""
    original = llama_cpp.Llama
    made: Any = partial(SteeredLlama, **arguments)
    made.from_pretrained = partial(SteeredLlama.from_pretrained, **arguments)
    llama_cpp.Llama = made
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
        "parse_special": settings.parse_special,
    }
    taken = ("chat_format", "clip_model_path", "chat_template_kwargs")
    return settings.model_copy(update=dict.fromkeys(taken)), arguments


def _load_checked(url: str) -> bytes:
    """The content of a data URL: the server has fetched and checked every picture by then."""
    if not url.startswith("data:"):
        raise SteeringError("a picture that was not checked reached the model")
    return load_url(url)


def _try_vector(llama: SteeredLlama, name: str, vector: Vector, settings: ModelSettings) -> None:
    if settings.clip_model_path and IMAGE.name not in vector.modalities:
        raise ModelError(
            f"vector {name!r} was measured on {', '.join(vector.modalities)} only, but the model "
            "is served with pictures. Convert with --mmproj, or serve without it."
        )
    vector.require_model(llama.fingerprint, force=settings.force_vector)
    with llama.using(vector.policy()):
        self_test(llama)
