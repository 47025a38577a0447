"""The models that are served, and the vectors that steer them."""

from __future__ import annotations

import logging
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
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.model_loader import load_model, mmproj_of
from mars_gguf.server.settings import DEFAULT_VECTOR, UNSTEERED, ModelSettings
from mars_gguf.vectors import Vector, read_vector
from mars_gguf.vectors.shelf import AUTO

log = logging.getLogger("mars_gguf.server")
MAX_NAME = 256  # characters of a model's name
# Settings in which models may differ that are loaded once.
OWN = {"model_alias", "vector", "vectors", "vectors_from", "force_vector"}


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
        and where there is one model alone, that. Raises RequestError for a name that none has."""
        if not model or (len(self._by_alias) == 1 and len(model) <= MAX_NAME):
            return next(iter(self._by_alias.values()))
        if model not in self._by_alias:
            known = ", ".join(self._by_alias)
            raise RequestError(
                f"model: found {model[:100]!r}, expected one of {known}", 404, "model_not_found"
            )
        return self._by_alias[model]

    def __call__(self, current: Exchange, model: str | None = None) -> SteeredLlama:
        """The model that a request means by ``model``, steered by the vector that it asks for; what
        it makes from now on is for that request. Raises RequestError if there is none of the name,
        or it cannot be loaded any more."""
        settings = self.settings(model)
        weights = self._weights(settings)
        if weights != self._held or self._llama is None:
            self.close()
            try:
                self._held, self._llama = weights, self._load(weights)
            except MarsError as error:  # its message names files
                raise RequestError("the model could not be loaded", 500) from error
        llama, alias = self._llama, str(settings.model_alias)
        llama.model_path = alias  # what a completion calls its model if the request names none
        vectors, vector = self.vectors[alias], current.vector or DEFAULT_VECTOR
        current.model, current.vector = alias, vector if vectors else None
        chosen = (vectors[vector].vector.policy(),) if vectors else ()
        if llama.steerer.policies != chosen or self._stopped:
            llama.context.rewind(0)
            llama.steerer.steer_by(*chosen)
            self._stopped = False
        llama.on_batch = partial(self._after_batch, current)
        llama.on_token = lambda: current.add_token(llama.last_steering)
        return llama

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
        if llama.projector is not None:
            llama.projector.load = _refuse
        return llama

    def _after_batch(self, current: Exchange) -> None:
        """Ends what nobody waits for any more, and what takes too long."""
        self._stopped = True
        current.require_wanted()
        self._stopped = False


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


def _refuse(url: str) -> bytes:
    """In the place of what reads a URL: the server has decoded every picture by then."""
    raise SteeringError("a picture that was not checked reached the model")


def _try_vector(llama: SteeredLlama, name: str, vector: Vector, settings: ModelSettings) -> None:
    if settings.clip_model_path and IMAGE.name not in vector.modalities:
        raise ModelError(
            f"vector {name!r} was measured on {', '.join(vector.modalities)} only, but the model "
            "is served with pictures. Convert with --mmproj, or serve without it."
        )
    vector.require_model(llama.fingerprint, force=settings.force_vector)
    with llama.using(vector.policy()):
        self_test(llama)
