"""Finds the vector that belongs to a model, by the model's fingerprint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_dir

from mars_gguf.errors import MarsError, VectorError
from mars_gguf.hub import fetch
from mars_gguf.runtime.weights import model_sha256, require_gguf, weights_sha256
from mars_gguf.vectors import MAX_FILE_BYTES, read_vector
from mars_gguf.vectors.shelf import FOLDER

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
    which is checked as any vector. Raises VectorError for a damaged one, and where there is none;
    then it says where it looked.
    """
    require_gguf(model)
    weights = model_sha256(model, *lora)
    wanted = {"mmproj_sha256": weights_sha256([mmproj]) if mmproj else ""}
    wanted |= {"reasoning": reasoning} if reasoning else {}
    mine = os.environ.get(SHELF) or user_cache_dir("mars-gguf", appauthor=False)
    looked = []
    for where in (mine, *_named(repositories)):
        try:
            names = f"{FOLDER}/{weights}*"  # with cards
            found = Path(mine).glob(names) if where is mine else fetch(where, names, MAX_FILE_BYTES)
            paths = sorted(path for path in found if path.suffix == ".gguf")
        except MarsError as error:
            looked.append(str(error))
            continue
        fitting = {}
        for path in paths:
            theirs = read_vector(path).model
            if theirs.weights_sha256 != weights:
                raise VectorError(f"{path}: a vector of other weights than its name says")
            differ = [key for key in wanted if wanted[key] != getattr(theirs, key)]
            if wrong := [key for key in differ if wanted[key] and getattr(theirs, key)]:
                looked.append(f"{path}: {wrong[0]}: made for {getattr(theirs, wrong[0])[:40]!r}")
            else:
                fitting[path] = len(differ)
        if fitting:
            return str(min(fitting, key=lambda path: fitting[path]))
        looked += [] if paths else [f"{where}: none of these weights"]
    raise VectorError(
        f"{model}: no vector of these weights ({weights}). Looked in\n"
        + "".join(f"  {line}\n" for line in looked)
        + f"Make one with python -m mars_gguf.convert {Path(model).name} and publish it with "
        "python -m mars_gguf.vectors publish, or name a repository of a hub that has one in "
        f"{REPOSITORIES}."
    )


def _named(repositories: Sequence[str] | None) -> list[str]:
    named = os.environ.get(REPOSITORIES, "").split(",") if repositories is None else repositories
    return [name.strip() for name in named if name.strip()]
