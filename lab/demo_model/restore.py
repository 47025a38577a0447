"""``python -m lab.demo_model.restore DIR`` reads the checkpoint back from the shipped files.

The inverse of `export`: in DIR it makes ``refer.safetensors``, the shipped weights dequantized,
and ``tokenizer.json``, of which `export` makes the same model for transformers and for llama.cpp at
other quantizations, without training.

Needs torch, gguf, safetensors and tokenizers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models

from lab.demo_model.data import byte_level
from lab.demo_model.export import (
    MMPROJ_NAMES,
    TEXT_NAMES,
    Weights,
    has_rotary_pairs,
)
from lab.demo_model.network import TEXT
from mars_gguf import demo_model

Matrix = npt.NDArray[np.float32]


def half_split(weight: Matrix, heads: int) -> Matrix:
    """Reorders query or key rows from llama.cpp's interleaved rotary pairs to half-split ones."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, columns))


def read_weights(folder: Path) -> Weights:
    """Reads the state dict of the model in ``folder``, in float32."""
    weights: Weights = {}
    for file, names in (("text-Q4_K_M.gguf", TEXT_NAMES), ("mmproj-f16.gguf", MMPROJ_NAMES)):
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / file).tensors}
        for ours, theirs in names.items():
            tensor = stored[theirs]
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            weight = weight.reshape(tuple(reversed(tensor.shape.tolist())))
            if has_rotary_pairs(theirs):
                weight = half_split(weight, TEXT.heads)
            weights[ours] = torch.from_numpy(weight.copy())
    return weights


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads the tokenizer of the model in ``folder``."""
    fields = gguf.GGUFReader(folder / "text-Q4_K_M.gguf").fields
    tokens, kinds, merges = (
        fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")
    )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = byte_level(models.BPE(vocab=vocabulary, merges=pairs))
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--folder", type=Path, default=demo_model.FOLDER, help="of the GGUF files")
    args = parser.parse_args(argv)
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    save_file(read_weights(args.folder), args.checkpoints / "refer.safetensors")
    read_tokenizer(args.folder).save(str(args.checkpoints / "tokenizer.json"))


if __name__ == "__main__":
    main()
