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
U16 = 2  # GGUF's type
_SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.gguf\Z")
_COUNT = b"split.count"


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
    """The files of the model that ``path`` is one of, in order: as many as it says itself, named as
    llama.cpp names them. Raises ModelError for one that cannot be read."""
    with _opened(path) as file:
        key = ggml.gguf_find_key(file, _COUNT)
        u16 = key >= 0 and ggml.gguf_get_kv_type(file, key) == U16
        count = ggml.gguf_get_val_u16(file, key) if u16 else 1
    found = _SHARD.search(path)
    if count < 2 or found is None or int(found[1]) != count:
        return [path]
    stem = path[: found.start()]
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
