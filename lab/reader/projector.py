"""Makes the projector: matched filters for the cells of tokens, and the tokens' input embeddings.

As llama.cpp runs a LLaVA "mlp" projector whose vision model is cut before its only block:

    v.patch_embd     whitened principal components f of a cell's ink; of a blank cell, f = 0
    mm.0, GELU       for each token j a ramp from 0 to 1 over the response m_j = <w_j, f>, of two
                     units: GELU is the identity far above 0 and 0 far below, so that
                     (GELU(A (m - lo) / (hi - lo)) - GELU(A (m - hi) / (hi - lo))) / A
    mm.2             sum over j of ramp_j (e_j - e_blank), and e_blank

w_j = C^-1 f_j / <f_j, C^-1 f_j> responds to its own cell with 1, and of all such filters it has the
least variance over all other cells and over jittered ones (C is their covariance). The ramp begins
above the largest response to any other token's cell.

A gap between the media can be dialled: a gain on the embeddings, a constant offset, and noise that
is a fixed random function of the content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from lab.reader.grid import GRID, SIDE, draw_cell, ink, jittered

JITTER = 2.0  # weight of jittered cells in C
SAMPLES = 3000  # of them
A = 20.0
KNOWN = "reader.tokens"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Gap:
    """A gap between the media, which the projector opens: ``gain`` scales embeddings; ``offset``
    adds one random vector of so many mean norms; ``noise`` adds so many standard deviations of
    their entries."""

    gain: float = 1.0
    offset: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Filters:
    """The filters: ``kernel`` [features, SIDE * SIDE]; ``weights`` [tokens, features]; ``low``
    [tokens], where the ramps begin."""

    kernel: Array
    weights: Array
    low: Array


def matched_filters(texts: Sequence[str], features: int) -> Filters:
    """Computes a filter for the cell of each token."""
    rng = np.random.default_rng(0)
    cells = ink(map(draw_cell, texts))
    kernel = _whitening(cells, features)
    f = cells @ kernel.T
    some = rng.permutation(len(texts))[:SAMPLES]
    moved = ink(jittered(texts[i], rng) for i in some) @ kernel.T - f[some]
    covariance = f.T @ f / len(f) + JITTER * moved.T @ moved / len(some)
    weights = np.linalg.solve(covariance, f.T).T
    weights /= (weights * f).sum(1, keepdims=True)
    low = np.clip(_largest_to_others(weights, f) + 0.03, 0.4, 0.95)
    return Filters(kernel.astype(np.float32), weights.astype(np.float32), low.astype(np.float32))


def _whitening(cells: Array, features: int) -> Array:
    """Computes the first principal components of ``cells`` [n, pixels], of second moment 1."""
    n, pixels = cells.shape
    if n < pixels:
        values, left = np.linalg.eigh(cells @ cells.T / n)
        vectors = cells.T @ (left / np.sqrt(np.maximum(values, 1e-12) * n))
    else:
        values, vectors = np.linalg.eigh(cells.T @ cells / n)
    if features > (rank := int((values > 1e-6 * values[-1]).sum())):
        raise ValueError(f"{features} features, the cells of these tokens have {rank}")
    best = slice(None, -features - 1, -1)
    return np.asarray((vectors[:, best] / np.sqrt(values[best])).T)


def _largest_to_others(weights: Array, f: Array) -> Array:
    """Finds each filter's largest response to another token's cell."""
    largest = np.empty(len(f), np.float32)
    for start in range(0, len(f), 2000):
        responses = weights[start : start + 2000] @ f.T
        rows = np.arange(len(responses))
        responses[rows, start + rows] = -np.inf
        largest[start : start + 2000] = responses.max(1)
    return largest


def tensors(filters: Filters, embeddings: Array, blank: Array, gap: Gap) -> dict[str, Array]:
    """Makes the projector's weights; ``embeddings`` [tokens, d] of the tokens, ``blank`` [d] of a
    blank cell."""
    rng = np.random.default_rng(0)
    features = len(filters.kernel)
    # The vision model sees v = 1 - 2 ink, the mean of three equal channels.
    kernel = filters.kernel.reshape(features, 1, SIDE, SIDE) / -6
    kernel = np.repeat(kernel, 3, 1).astype(np.float16)
    white = -kernel.astype(np.float32).sum((1, 2, 3))
    high = (1 + filters.low) / 2
    slope = A / (high - filters.low)
    first = np.concatenate([filters.weights * slope[:, None]] * 2)
    bias = np.concatenate([-slope * filters.low, -slope * high])
    columns = gap.gain * (embeddings - blank) / A
    second = np.concatenate([columns, -columns])
    away = rng.normal(size=len(blank))
    away *= gap.offset * np.linalg.norm(embeddings, axis=1).mean() / np.linalg.norm(away)
    if gap.noise:
        n = 256
        some = rng.normal(size=(n, features)) * 2 / np.sqrt(features)
        spread = rng.normal(size=(n, len(blank))) * gap.noise * embeddings.std() / np.sqrt(n)
        first, bias = np.concatenate([first, some]), np.concatenate([bias, np.zeros(n)])
        second = np.concatenate([second, spread])
    return {
        "v.patch_embd.weight": kernel,
        "v.position_embd.weight": np.tile(white, (GRID * GRID, 1)),
        "mm.0.weight": first.astype(np.float16),
        "mm.0.bias": bias,
        "mm.2.weight": second.T.astype(np.float16),
        "mm.2.bias": gap.gain * blank + away,
    } | _unused_block(features)


def _unused_block(n: int) -> dict[str, Array]:
    """Makes a block of the vision model, which llama.cpp loads and, as it is last, never runs."""
    shapes = {"ln1": (n,), "ln2": (n,), "ffn_up": (16, n), "ffn_down": (n, 16)}
    shapes |= {f"attn_{name}": (n, n) for name in ("q", "k", "v", "out")}
    block: dict[str, Array] = {}
    for name, shape in shapes.items():
        kind: Any = np.float16 if len(shape) == 2 else np.float32
        block[f"v.blk.0.{name}.weight"] = np.zeros(shape, kind)
        block[f"v.blk.0.{name}.bias"] = np.zeros(shape[0], np.float32)
    return block


def write(path: Path, weights: dict[str, Array], texts: Sequence[str]) -> None:
    """Writes the projector as an mmproj that also holds the texts of the tokens that it reads."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.use_gelu", True)
    writer.add_string("clip.projector_type", "mlp")
    numbers = {
        "image_size": SIDE * GRID,
        "patch_size": SIDE,
        "embedding_length": len(weights["v.patch_embd.weight"]),
        "projection_dim": len(weights["mm.2.bias"]),
        "feed_forward_length": 16,
        "block_count": 1,
        "attention.head_count": 1,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5] * 3)
    writer.add_array(KNOWN, list(texts))
    for name, tensor in weights.items():
        half = tensor.dtype == np.float16
        writer.add_tensor(name, np.ascontiguousarray(tensor, None if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def known_tokens(path: str | Path) -> list[str]:
    """Reads the texts of the tokens that the projector at ``path`` knows."""
    field = gguf.GGUFReader(path).get_field(KNOWN)
    if field is None:
        raise SystemExit(f"{path}: not made by lab.reader.build: it has no {KNOWN}")
    return list(field.contents())
