"""Writes files so that each is whole or not there, and tells them apart by their hash."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mars_gguf.errors import MarsError
from mars_gguf.interrupts import interrupts_held

SUFFIX = ".partial"


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary file beside ``path`` to write to, and puts it in its place at the end.

    If the block ends by an exception, ``path`` stays as it was. Folders are made. The file may be
    read and written by whom the umask lets. What is no regular file (a pipe, /dev/null) is written
    to directly.

    Raises MarsError, naming ``path``, in place of any OSError.
    """
    path = Path(path)
    with _named(path):
        target = _target(path)
        if target.exists() and not target.is_file():
            yield path
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target, target.parent) as file:
            yield file
            os.replace(file, target)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raises MarsError, naming ``path``, unless `atomic` could write it now, and replace nothing
    that is write-protected. Makes no folders."""
    path = Path(path)
    with _named(path):
        target = _target(path)
        if target.exists() and not target.stat().st_mode & 0o222:
            raise PermissionError(errno.EACCES, "it is write-protected")
        folder = next(p for p in target.parents if p.exists())
        with _temporary(target, folder):
            pass


def sha256(path: str | os.PathLike[str]) -> str:
    """Hashes a file: SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MarsError(f"{path}: cannot be written: {error.strerror or error}") from error


def _target(path: Path) -> Path:
    """Follows links. Raises OSError if they lead in a circle, or there can be no such file."""
    try:
        path.stat()
    except FileNotFoundError:
        pass  # not yet
    except ValueError as error:  # of a name that holds NUL
        raise OSError(errno.EINVAL, str(error)) from error
    return Path(os.path.realpath(path))


@contextmanager
def _temporary(target: Path, folder: Path) -> Iterator[Path]:
    file = folder / f"{target.name}.{secrets.token_hex(4)}{SUFFIX}"
    try:
        file.touch(exist_ok=False)
        yield file
    finally:
        with interrupts_held():
            file.unlink(missing_ok=True)
