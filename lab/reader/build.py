"""``python -m lab.reader.build MODEL.gguf -o mmproj.gguf`` makes the projector for a text model."""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib

from lab.reader.grid import is_readable
from lab.reader.projector import Array, Gap, matched_filters, tensors, write
from mars_gguf.console import command
from mars_gguf.runtime.weights import require_gguf


def readable_tokens(llama: Llama, most: int) -> dict[str, int]:
    """Finds the texts that get a filter, and the ids of their tokens, the first ``most`` of the
    vocabulary."""
    vocab = lib.llama_model_get_vocab(llama.model)
    buffer = ctypes.create_string_buffer(256)
    known: dict[str, int] = {}
    for number in range(llama.n_vocab()):
        length = lib.llama_token_to_piece(vocab, number, buffer, len(buffer), 0, False)
        text = buffer.raw[: max(length, 0)].decode("utf-8", errors="replace")
        if is_readable(text, number):
            known.setdefault(text, number)
        if len(known) == most:
            break
    return known


def embeddings(model: Path, numbers: list[int]) -> Array:
    """Reads the input embeddings of tokens, float32 [n, d]."""
    reader = gguf.GGUFReader(model)
    architecture = reader.fields["general.architecture"].contents()
    if architecture.startswith("gemma") or f"{architecture}.embedding_scale" in reader.fields:
        raise SystemExit(f"{model}: {architecture} scales embeddings of text, but not of pictures")
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    return np.asarray(gguf.dequantize(table.data[np.asarray(numbers)], table.tensor_type))


def build(model: Path, output: Path, *, gap: Gap, most: int, features: int) -> int:
    """Writes the projector. Returns how many tokens it reads."""
    llama = Llama(str(model), vocab_only=True, verbose=False)
    known = readable_tokens(llama, most)
    (space,) = llama.tokenize(b" ", add_bos=False)[-1:]
    llama.close()
    *rows, blank = embeddings(model, [*known.values(), space])
    filters = matched_filters(list(known), features)
    write(output, tensors(filters, np.stack(rows), blank, gap), list(known))
    return len(known)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="lab.reader.build", description=__doc__)
    p.add_argument("model", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="MMPROJ")
    p.add_argument("--gain", type=float, default=1.0, help="scale of the embeddings")
    p.add_argument("--offset", type=float, default=0.0, help="a vector of so many mean norms")
    p.add_argument("--noise", type=float, default=0.0, help="so many sds of an embedding's entries")
    p.add_argument("--tokens", type=int, default=14_000, help="read so many, at most")
    p.add_argument("--features", type=int, default=768, help="of a cell")
    args = p.parse_args(argv)
    require_gguf(str(args.model))
    gap = Gap(args.gain, args.offset, args.noise)
    n = build(args.model, args.output, gap=gap, most=args.tokens, features=args.features)
    print(f"wrote {args.output}: reads {n} tokens")


if __name__ == "__main__":
    with command():
        main()
