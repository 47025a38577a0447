"""Finds the vector that belongs to a model, by the model's fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from mars_gguf.errors import MarsError, VectorError
from mars_gguf.hub import fetch
from mars_gguf.runtime.weights import model_sha256, require_gguf, weights_sha256
from mars_gguf.vectors import Vector
from mars_gguf.vectors.shelf import FOLDER, Get, in_folder, vectors_of

SHELF, REPOSITORIES = "MARS_VECTORS", "MARS_VECTORS_FROM"


def find_vector(
    model: str,
    mmproj: str | None = None,
    repositories: Sequence[str] | None = None,
    lora: tuple[str | None, float] = (None, 1.0),
    reasoning: str | None = None,
) -> str:
    """Finds the vector of a GGUF model by the hash of its weights (`weights_sha256`), with those of
    the ``lora`` (file, scale) that it is loaded with: in the folder ``$MARS_VECTORS``, else in the
    user's cache folder, and then in ``repositories`` of a hub (default: those that
    ``$MARS_VECTORS_FROM`` names, with commas between them).

    Of several, it takes one of this mmproj and this ``reasoning``. Returns the path of the file,
    which is checked against the index of where it was, and as any vector. Raises VectorError where
    there is none, and says where it looked.
    """
    require_gguf(model)
    weights = model_sha256(model, *lora)
    known = {"mmproj_sha256": mmproj and weights_sha256([mmproj]), "reasoning": reasoning}
    looked = []
    for where, get in _shelves(repositories):
        try:
            found = list(vectors_of(weights, get, where))
        except VectorError:
            raise
        except MarsError as error:
            looked.append(str(error))
            continue
        reasons = {path: _differences(vector, known) for path, vector in found}
        fitting = [(path, vector) for path, vector in found if not reasons[path]]
        if fitting:
            return str(min(fitting, key=lambda pair: _unknown(pair[1], known))[0])
        looked += [f"{path}: {reason}" for path, reason in reasons.items()]
        looked += [] if found else [f"{where}: none of these weights"]
    raise VectorError(
        "\n".join(
            [
                f"{model}: no vector of these weights ({weights}). Looked in",
                *(f"  {line}" for line in looked),
                f"Make one with python -m mars_gguf.convert {Path(model).name} and publish it with "
                "python -m mars_gguf.vectors publish, or name a repository of a hub that has one "
                f"with --vectors-from ({REPOSITORIES}).",
            ]
        )
    )


def shelf() -> Path:
    """Returns the folder of the user's vectors."""
    return Path(os.environ.get(SHELF) or user_cache_dir("mars-gguf", appauthor=False))


def _shelves(repositories: Sequence[str] | None) -> Iterator[tuple[str, Get]]:
    yield str(shelf()), in_folder(shelf())
    named = os.environ.get(REPOSITORIES, "").split(",") if repositories is None else repositories
    for repository in named:
        if repository.strip():
            yield repository.strip(), partial(_of_hub, repository.strip())


def _of_hub(repository: str, name: str, most: int) -> Path | None:
    path = fetch(repository, f"{FOLDER}/{name}", most)
    return Path(path) if path else None


def _differences(vector: Vector, known: Mapping[str, Any]) -> str:
    """Says in what a vector of these weights is of another model, as far as that is known before
    it is loaded."""
    model = vector.model
    differ = [
        f"{key}: made for {str(getattr(model, key))[:40]!r}, this model has {str(value)[:40]!r}"
        for key, value in known.items()
        if value and getattr(model, key) not in ("", value)
    ]
    return "; ".join(differ)


def _unknown(vector: Vector, known: Mapping[str, Any]) -> int:
    """In how many things a vector that fits may be of another model all the same."""
    asked = {key: value for key, value in known.items() if key == "mmproj_sha256" or value}
    return sum(getattr(vector.model, key) != (value or "") for key, value in asked.items())
