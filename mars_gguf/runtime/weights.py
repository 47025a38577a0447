"""What tells the weights of one GGUF file from those of another, without reading all of them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mars_gguf.errors import ModelError
from mars_gguf.runtime.compat import GgufParams, ggml

SAMPLES, SAMPLE_BYTES = 4, 64  # of each tensor
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def weights_sha256(paths: Sequence[str]) -> str:
    """SHA-256, hexadecimal, over the name, type and size of every tensor of GGUF files, and
    SAMPLES * SAMPLE_BYTES of its bytes, evenly spread. Of a model in several files any one is
    given.

    Another quantization or fine-tuning changes some of every tensor and with it the hash. Raises
    ModelError for a file that cannot be read, a missing one among them.
    """
    digest = hashlib.sha256()
    for path in paths:
        for shard in shards(path):
            _add(digest, shard)
    return digest.hexdigest()


def shards(path: str) -> list[str]:
    """The files of the model that ``path`` is one of, as llama.cpp names them, in order."""
    found = _SHARD.search(path)
    if found is None:
        return [path]
    stem, count = path[: found.start()], int(found[2])
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _add(digest: Any, path: str) -> None:
    try:
        with _opened(path) as file, Path(path).open("rb") as stream:
            base = ggml.gguf_get_data_offset(file)
            for i in range(ggml.gguf_get_n_tensors(file)):
                size = ggml.gguf_get_tensor_size(file, i)
                digest.update(ggml.gguf_get_tensor_name(file, i))
                digest.update(b"%d %d\n" % (ggml.gguf_get_tensor_type(file, i), size))
                start = base + ggml.gguf_get_tensor_offset(file, i)
                last = max(size - SAMPLE_BYTES, 0)
                for sample in range(SAMPLES):
                    stream.seek(start + last * sample // (SAMPLES - 1))
                    digest.update(stream.read(min(SAMPLE_BYTES, size)))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Context manager: llama.cpp's view of a GGUF file."""
    file = ggml.gguf_init_from_file(os.fsencode(path), GgufParams(True, None))
    if not file:
        raise ModelError(f"{path}: llama.cpp could not read it as a GGUF file")
    pointer = ctypes.c_void_p(file)
    try:
        yield pointer
    finally:
        ggml.gguf_free(pointer)
