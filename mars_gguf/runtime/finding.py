"""Finds the vector that belongs to a model, by the model's fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir

from mars_gguf.errors import MarsError, VectorError
from mars_gguf.hub import fetch
from mars_gguf.runtime.weights import model_sha256, require_gguf, weights_sha256
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
    wanted = {"mmproj_sha256": weights_sha256([mmproj]) if mmproj else ""}
    wanted |= {"reasoning": reasoning} if reasoning else {}
    looked = []
    for where, get in _shelves(repositories):
        fitting, found = {}, 0
        try:
            for path, vector in vectors_of(weights, get, where):
                found += 1
                theirs = {key: str(getattr(vector.model, key)) for key in wanted}
                differ = [key for key, value in wanted.items() if value != theirs[key]]
                if wrong := [key for key in differ if wanted[key] and theirs[key]]:
                    looked.append(f"{path}: {wrong[0]}: made for {theirs[wrong[0]][:40]!r}")
                else:
                    fitting[str(path)] = len(differ)
        except VectorError:
            raise
        except MarsError as error:
            looked.append(str(error))
            continue
        if fitting:
            return min(fitting, key=lambda path: fitting[path])
        looked += [] if found else [f"{where}: none of these weights"]
    raise VectorError(
        f"{model}: no vector of these weights ({weights}). Looked in\n"
        + "".join(f"  {line}\n" for line in looked)
        + f"Make one with python -m mars_gguf.convert {Path(model).name} and publish it with "
        "python -m mars_gguf.vectors publish, or name a repository of a hub that has one in "
        f"{REPOSITORIES}."
    )


def _shelves(repositories: Sequence[str] | None) -> Iterator[tuple[str, Get]]:
    mine = Path(os.environ.get(SHELF) or user_cache_dir("mars-gguf", appauthor=False))
    yield str(mine), in_folder(mine)
    named = os.environ.get(REPOSITORIES, "").split(",") if repositories is None else repositories
    for repository in filter(None, map(str.strip, named)):
        yield repository, partial(_of_hub, repository)


def _of_hub(repository: str, name: str, most: int) -> Path | None:
    path = fetch(repository, f"{FOLDER}/{name}", most)
    return Path(path) if path else None
