"""The models that are served, and the vectors that steer them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mars_gguf.errors import MarsError, ModelError, SteeringError
from mars_gguf.files import sha256
from mars_gguf.hub import download
from mars_gguf.modalities import IMAGE
from mars_gguf.runtime.finding import find_vector
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.selftest import self_test
from mars_gguf.runtime.urls import load_url
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import exchange, require_wanted
from mars_gguf.server.model_loader import load_model, mmproj_of
from mars_gguf.server.settings import (
    DEFAULT_VECTOR,
    UNSTEERED,
    ModelSettings,
)
from mars_gguf.vectors import Vector, read_vector
from mars_gguf.vectors.shelf import AUTO

log = logging.getLogger("mars_gguf.server")
MAX_NAME = 256  # characters of a model's name
# Settings in which models may differ that are loaded once.
OWN = {"model_alias", "vector", "vectors", "vectors_from", "force_vector"}


class UnknownModel(RequestError):
    """Says that no model has the name that a request gives."""

    code = "model_not_found"

    def __init__(self, found: str, known: list[str]) -> None:
        super().__init__(
            f"model: found {found[:100]!r}, expected one of {', '.join(known)}", status=404
        )


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
    """Holds the weights that were asked last, of those that are served, and the vectors of all
    models. Models that differ in name and vectors alone have their weights in common.

    All models and vectors are loaded once at the start, so that one which does not fit is found
    then. Raises MarsError.

    vectors: of each model, by its alias: those that a request may choose, none where it is served
    unsteered.
    """

    def __init__(self, models: list[ModelSettings]) -> None:
        self._by_alias = {str(settings.model_alias): settings for settings in models}
        self.vectors = {alias: _vectors(settings) for alias, settings in self._by_alias.items()}
        self._alike: dict[str, list[ModelSettings]] = {}  # by what they have in common
        for settings in models:
            self._alike.setdefault(self._weights(settings), []).append(settings)
        self._log()
        self._stopped = False  # in the middle of a prompt
        self._held, *others = self._alike
        for weights in others:
            self._load(weights).close()
        self._llama: SteeredLlama | None = self._load(self._held)

    def _weights(self, settings: ModelSettings) -> str:
        """Names the weights of a model by all in which models that share them must agree."""
        vectors = self.vectors[str(settings.model_alias)]
        measured = vectors[DEFAULT_VECTOR].vector.model.reasoning if vectors else None
        reasoning = settings.reasoning or measured or None
        return settings.model_copy(update={"reasoning": reasoning}).model_dump_json(exclude=OWN)

    def _log(self) -> None:
        for alike in self._alike.values():
            if len(alike) > 1:
                names = ", ".join(str(settings.model_alias) for settings in alike)
                log.info("loaded once for %s", names)
        for alias, vectors in self.vectors.items():
            if not vectors:
                log.warning("%s is NOT STEERED: its settings say vector %r", alias, UNSTEERED)

    def close(self) -> None:
        """Frees the model that is held."""
        if self._llama is not None:
            self._llama.close()
        self._llama = None

    def settings(self, model: str | None) -> ModelSettings:
        """The settings of the model that a request means by ``model``: the first if it names none,
        and where there is one model alone, that. Raises UnknownModel."""
        if model and len(model) > MAX_NAME:  # which every piece of a stream would repeat
            raise UnknownModel(model, [*self._by_alias])
        if not model or len(self._by_alias) == 1:
            return next(iter(self._by_alias.values()))
        if model not in self._by_alias:
            raise UnknownModel(model, [*self._by_alias])
        return self._by_alias[model]

    def __call__(self, model: str | None = None) -> SteeredLlama:
        """The model that a request means by ``model``, steered by the vector that it asks for.

        Raises RequestError if it cannot be loaded any more, UnknownModel.
        """
        settings = self.settings(model)
        weights = self._weights(settings)
        if weights != self._held or self._llama is None:
            self.close()
            try:
                self._held, self._llama = weights, self._load(weights)
            except MarsError as error:  # its message names files
                raise RequestError("the model could not be loaded", 500) from error
        # What a completion calls its model if the request names none.
        self._llama.model_path = str(settings.model_alias)
        vectors, current = self.vectors[str(settings.model_alias)], exchange.get()
        vector = DEFAULT_VECTOR if current is None or current.vector is None else current.vector
        if current is not None:
            current.model, current.vector = settings.model_alias, vector if vectors else None
        chosen = (vectors[vector].vector.policy(),) if vectors else ()
        if self._llama.steerer.policies != chosen or self._stopped:
            self._llama.context.rewind(0)
            self._llama.steerer.steer_by(*chosen)
            self._stopped = False
        return self._llama

    def _load(self, weights: str) -> SteeredLlama:
        """Loads weights, and tries each vector of the models that have them."""
        settings = self._alike[weights][0]
        try:
            vectors = self.vectors[str(settings.model_alias)]
            first = vectors[DEFAULT_VECTOR].vector if vectors else None
            llama = load_model(settings, first)
            for settings in self._alike[weights]:
                for name, named in self.vectors[str(settings.model_alias)].items():
                    _try_vector(llama, name, named.vector, settings)
        except MarsError as error:
            raise type(error)(f"{settings.model_alias}: {error}") from error
        except (AssertionError, ValueError, OSError, ImportError) as error:
            raise ModelError(f"{settings.model_alias}: cannot be loaded: {error}") from error
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
    if llama.last_steering is None and current.vector is not None:
        raise SteeringError("a token was sampled that steering had not seen")
    if current.tokens == 0:
        current.first_token = time.perf_counter()
        current.prompt_tokens = llama.n_tokens
    current.steering = llama.last_steering
    current.tokens += 1


def _vectors(settings: ModelSettings) -> dict[str, NamedVector]:
    """The vectors of a model by name, read."""
    if settings.vector == UNSTEERED:
        return {}
    paths = {DEFAULT_VECTOR: _vector_file(settings)} | settings.vectors
    return {name: NamedVector.read(path) for name, path in paths.items()}


def _vector_file(settings: ModelSettings) -> str:
    """The vector that steers a model, found if that is asked. Raises MarsError."""
    if settings.vector != AUTO:
        return settings.vector
    repository, model, lora = settings.hf_model_repo_id, settings.model, settings.lora_path
    if repository:
        model = str(download(repository, model))
    try:
        return find_vector(
            model,
            mmproj_of(settings),
            settings.vectors_from or None,
            lora=(lora, 1.0),
            reasoning=settings.reasoning,
        )
    except MarsError as error:
        raise type(error)(f"{settings.model_alias}: {error}") from error


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
