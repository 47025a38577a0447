"""Fingerprints a model: tells its weights from others without reading all of them."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError
from mars_gguf.runtime.compat import GgufParams, ggml
from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.vectors import ModelFingerprint

SAMPLES, SAMPLE_BYTES = 4, 64  # of each tensor
U16 = 2  # GGUF's type
_SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})\.gguf\Z")
_COUNT = b"split.count"


def weights_sha256(paths: Sequence[str]) -> str:
    """SHA-256, hexadecimal, over the name, type and size of every tensor of GGUF files, and
    SAMPLES * SAMPLE_BYTES of its bytes, evenly spread: another quantization or fine-tuning changes
    it. Of a model in several files any one is given. Raises ModelError for one that cannot be read.
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


def require_gguf(path: str) -> None:
    """Raise ModelError unless ``path`` is a file that starts like a GGUF."""
    file = Path(path)
    if not file.exists():
        raise ModelError(f"{path}: no such file")
    if not file.is_file():
        raise ModelError(f"{path}: not a file. Give a model in GGUF format.")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise ModelError(
            f"{path}: not a GGUF file (it starts with {magic!r}, expected b'GGUF'). "
            "Give a model in GGUF format."
        )


_FILE_TYPES = {
    getattr(lib, name): re.sub(r"^LLAMA_FTYPE_(MOSTLY_|ALL_)?", "", name)
    for name in dir(lib)
    if name.startswith("LLAMA_FTYPE_")
}


def quantization_name(file_type: str | None) -> str:
    """``general.file_type`` as people write it: "15" -> "Q4_K_M"; "" if not known."""
    return _FILE_TYPES.get(int(file_type), "") if file_type and file_type.isdecimal() else ""


def fingerprint_of(llama: Llama, template: ChatTemplate, mmproj: str | None) -> ModelFingerprint:
    """The fingerprint of a loaded model and its mmproj. The tokenizer's hash is over the texts of
    all tokens that are in use, by id; padding that converters add does not count."""
    tokens = hashlib.sha256()
    vocab = lib.llama_model_get_vocab(llama.model)
    for token in range(llama.n_vocab()):
        if not lib.llama_vocab_get_attr(vocab, token) & lib.LLAMA_TOKEN_ATTR_UNUSED:
            tokens.update(lib.llama_vocab_get_text(vocab, token) + b"\n")
    return ModelFingerprint(
        architecture=llama.metadata.get("general.architecture", ""),
        name=llama.metadata.get("general.name", ""),
        n_layer=lib.llama_model_n_layer(llama.model),
        n_embd=llama.n_embd(),
        quantization=quantization_name(llama.metadata.get("general.file_type")),
        chat_template_sha256=template.sha256,
        tokenizer_sha256=tokens.hexdigest(),
        chat_template_kwargs=json.dumps(template.kwargs, sort_keys=True),
        weights_sha256=model_sha256(llama.model_path, llama.lora_path, llama.lora_scale),
        mmproj_sha256=weights_sha256([mmproj]) if mmproj else "",
        reasoning=template.reasoning or "",
    )


def model_sha256(path: str, lora: str | None, scale: float) -> str:
    """`weights_sha256` of a model, with the LoRA adapter that it is loaded with, if any."""
    if not lora:
        return weights_sha256([path])
    both = weights_sha256([path, lora])
    return hashlib.sha256(f"{both} {scale}".encode()).hexdigest()
