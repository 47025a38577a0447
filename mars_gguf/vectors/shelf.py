"""Keeps vectors by the weights that they belong to: a folder, or a repository of the same layout.

    vectors/index.json      {"files": {NAME: SHA-256 of the file, ...}}
    vectors/<hash>.gguf     a vector; <hash> is its mars.model.weights_sha256; <hash>.md: its card
    vectors/<hash>-2.gguf   another one of the same weights: of another mmproj, say

A shelf is not trusted: the index and every file are bounded, names are of the form above, and a
vector is checked as one that a user gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mars_gguf.errors import MarsError, VectorError
from mars_gguf.files import atomic, sha256
from mars_gguf.vectors.format import MAX_FILE_BYTES
from mars_gguf.vectors.reader import read_vector
from mars_gguf.vectors.vector import Vector

AUTO = "auto"  # in place of a vector file: the one that belongs to the model
FOLDER, INDEX = "vectors", "index.json"
MAX_INDEX_BYTES = 1 << 20
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9a-f]{64})(-[1-9][0-9]{0,3})?\.(gguf|md)")

Get = Callable[[str, int], Path | None]  # the file of a name, of at most so many bytes, if there


def publish(shelf: Path, files: list[Path]) -> list[Path]:
    """Copies vector files and their cards to a shelf, and writes its index. A vector takes the
    place of one of the same model, mmproj, chat template and reasoning.

    Returns the vectors' new paths. Raises MarsError, before anything is written, for a file that is
    no vector, has no card beside it, or does not know the weights that it was measured with.
    """
    vectors = {file: read_vector(file) for file in files}
    for file, vector in vectors.items():
        if not file.with_suffix(".md").is_file():
            raise MarsError(f"{file}: no card beside it, expected {file.with_suffix('.md').name}")
        if not _HASH.fullmatch(vector.model.weights_sha256):
            raise VectorError(
                f"{file}: does not know the weights that it was measured with. Convert the GGUF."
            )
    folder, written = shelf / FOLDER, list[Path]()
    index = _index(in_folder(shelf), str(shelf)) or {}
    for file, vector in vectors.items():
        path, number = folder / f"{vector.model.weights_sha256}.gguf", 1
        while path.exists() and read_vector(path).model != vector.model:
            path = folder / f"{vector.model.weights_sha256}-{(number := number + 1)}.gguf"
        for suffix in (".gguf", ".md"):
            with atomic(path.with_suffix(suffix)) as temporary:
                temporary.write_bytes(file.with_suffix(suffix).read_bytes())
            index[path.with_suffix(suffix).name] = sha256(path.with_suffix(suffix))
        with atomic(folder / INDEX) as temporary:
            text = json.dumps({"files": dict(sorted(index.items()))}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
        written.append(path)
    return written


def in_folder(shelf: Path) -> Get:
    """Makes the function that gets files of a shelf that is a folder."""

    def get(name: str, most: int) -> Path | None:
        path = shelf / FOLDER / name
        if path.is_file() and path.stat().st_size > most:
            raise MarsError(f"{path}: {path.stat().st_size} bytes, expected at most {most}")
        return path if path.is_file() else None

    return get


def vectors_of(weights: str, get: Get, where: str) -> Iterator[tuple[Path, Vector]]:
    """Reads the vectors of a shelf that belong to these weights, each with its card beside it.

    Raises MarsError for a shelf without an index or with a damaged one, VectorError for a file that
    is not the one in the index or belongs to other weights.
    """
    index = _index(get, where)
    if index is None:
        raise MarsError(f"{where}: no {FOLDER}/{INDEX}")
    paths = {}
    for name in sorted(n for n in index if n.startswith(weights)):
        path = paths[name] = get(name, MAX_FILE_BYTES)
        found = "no such file" if path is None else sha256(path)
        if found != index[name]:
            raise VectorError(
                f"{where}: {FOLDER}/{name}: found {found[:12]}, expected the SHA-256 "
                f"{index[name][:12]}... of the index: the file is damaged, or was changed since"
            )
    for path in paths.values():
        if path is not None and path.suffix == ".gguf":
            vector = read_vector(path)
            if vector.model.weights_sha256 != weights:
                raise VectorError(f"{path}: a vector of other weights than its name says")
            yield path, vector


def _index(get: Get, where: str) -> dict[str, str] | None:
    """Reads the hash of each file of a shelf by name; None if it has no index."""
    path = get(INDEX, MAX_INDEX_BYTES)
    if path is None:
        return None
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        whole = all(_NAME.fullmatch(n) and _HASH.fullmatch(h) for n, h in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise MarsError(
            f"{where}: {FOLDER}/{INDEX} is damaged, expected {{'files': {{NAME: SHA-256}}}}, as "
            "python -m mars_gguf.vectors publish writes it"
        )
    return dict(files)
