"""Keeps what is measured until the output is written: an interrupted conversion can go on."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from mars_gguf.convert.extractor import Observation, Opening
from mars_gguf.errors import MarsError
from mars_gguf.files import sha256

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, shape TEXT, state BLOB, token INT, "
    "reply INT, text TEXT)"
)
PACKAGE = Path(__file__).parents[1]
FOLDERS = "convert", "media", "runtime"


@cache
def code_sha256(package: Path = PACKAGE) -> str:
    """Hashes the code that decides what is seen of a prompt: the modules of ``package`` in FOLDERS
    and beside them, and the version of llama-cpp-python. Hexadecimal."""
    folders = [package, *(package / folder for folder in FOLDERS)]
    files = sorted(
        f for folder in folders for f in folder.iterdir() if f.suffix in (".py", ".c", ".toml")
    )
    digest = hashlib.sha256()
    with suppress(PackageNotFoundError):
        digest.update(version("llama-cpp-python").encode())
    for file in files:
        digest.update(f"{file.relative_to(package).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def require_ours(path: Path) -> None:
    """Raises MarsError for a file that no `ResumeFile` wrote: it would be removed in the end."""
    if path.exists() and path.stat().st_size:
        with _named(path), closing(sqlite3.connect(path, timeout=60)) as file:
            tables = [name for (name,) in file.execute("SELECT tbl_name FROM sqlite_master")]
            if set(tables) - {"seen"}:
                raise sqlite3.DatabaseError("it holds something else")


class ResumeFile:
    """Keeps what was seen of prompts in the file ``path`` (a `Store`).

    job: all that decides what is seen of a prompt besides the prompt itself: the model, the code
        (`code_sha256`). Other jobs in the same file are neither read nor disturbed.
    """

    def __init__(self, path: Path, job: str) -> None:
        self.path, self.job = path, job

    def find(self, keys: Sequence[str]) -> dict[str, Observation]:
        """Returns those of the keys that are kept. Raises MarsError for another kind of file."""
        if not self.path.exists():
            return {}
        query = "SELECT shape, state, token, reply, text FROM seen WHERE key = ?"
        found: dict[str, Observation] = {}
        with self._connected() as file:
            for key in keys:
                for shape, state, token, reply, text in file.execute(query, [self._name(key)]):
                    size = tuple(map(int, shape.split(",")))
                    values = np.frombuffer(state, np.float32).reshape(size)
                    found[key] = Observation(values, token, Opening(reply, text))
        return found

    def keep(self, seen: Mapping[str, Observation]) -> None:
        """Keeps what was seen; what is in the file is whole at any time. Raises MarsError."""
        rows = [
            (
                self._name(key),
                ",".join(map(str, one.state.shape)),
                np.ascontiguousarray(one.state, np.float32).tobytes(),
                int(one.token),
                *one.reply,
            )
            for key, one in seen.items()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as file, file:
            file.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with _named(self.path), closing(sqlite3.connect(self.path, timeout=60)) as file:
            file.execute(SCHEMA)
            yield file

    def _name(self, key: str) -> str:
        return hashlib.sha256(f"{self.job} {key}".encode()).hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Makes MarsErrors of what goes wrong with the file."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise MarsError(
            f"{path}: cannot be used to keep what is measured ({error}). Move it away, or choose "
            "another --output."
        ) from error
