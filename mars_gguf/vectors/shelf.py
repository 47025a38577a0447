"""Keeps vectors by the weights that they belong to, in a folder that can be uploaded as it is.

vectors/<hash>.gguf     a vector; <hash> is its mars.model.weights_sha256; <hash>.md: its card
vectors/<hash>-2.gguf   another one of the same weights: of another mmproj, say
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

from mars_gguf.errors import MarsError, VectorError
from mars_gguf.files import atomic
from mars_gguf.vectors.reader import read_vector

AUTO = "auto"  # in place of a vector file: the one that belongs to the model
FOLDER = "vectors"


def publish(shelf: Path, files: list[Path]) -> list[Path]:
    """Copies vector files and their cards to a shelf. A vector takes the place of one of the same
    model, mmproj, chat template and reasoning.

    Returns the vectors' new paths. Raises MarsError, before anything is written, for a file that is
    no vector, has no card beside it, or does not know the weights that it was measured with.
    """
    models = {file: read_vector(file).model for file in files}
    for file, model in models.items():
        if not file.with_suffix(".md").is_file():
            raise MarsError(f"{file}: no card beside it, expected {file.with_suffix('.md').name}")
        if not re.fullmatch("[0-9a-f]{64}", model.weights_sha256):
            raise VectorError(
                f"{file}: does not know the weights that it was measured with. Convert the GGUF."
            )
    written = []
    for file, model in models.items():
        stem = model.weights_sha256
        names = (f"{stem}-{number}.gguf" if number > 1 else f"{stem}.gguf" for number in count(1))
        paths = (shelf / FOLDER / name for name in names)
        path = next(path for path in paths if not path.exists() or read_vector(path).model == model)
        for suffix in (".gguf", ".md"):
            with atomic(path.with_suffix(suffix)) as temporary:
                temporary.write_bytes(file.with_suffix(suffix).read_bytes())
        written.append(path)
    return written
