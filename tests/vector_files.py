"""Vector files written by hand, byte for byte, and what a refusal of one says."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mars_gguf.errors import VectorError
from mars_gguf.steering import Geometry, projection
from mars_gguf.vectors import ModelFingerprint, Vector, read_vector

MODEL = ModelFingerprint("llama", "Tiny Chat", 8, 4, "Q4_K_M", "ab" * 32, "cd" * 32)
MODEL = replace(MODEL, weights_sha256="ef" * 32)
SAFE = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
UNSAFE = np.array([1.5, 1.0, 2.0, -2.0], np.float32)
SHIFT = np.array([7.0, 0.0, -0.25, 1.0], np.float32)
READOUT = projection(UNSAFE - SAFE).astype(np.float32)
GEOMETRY = Geometry(
    SAFE, UNSAFE, READOUT,
    shifts={"text": np.zeros(4, np.float32), "image": SHIFT},
    spreads={"text": 0.125, "image": 0.25},
    thresholds={"text": 0.375, "image": -0.5}, gate_ramp=1.0, trust_limit=1.75,
)  # fmt: skip
VECTOR = Vector(
    3, GEOMETRY, MODEL,
    calibration={"prompts": 64, "auroc": 0.9375, "t": [0.5, 1.0], "layers": [3, 5], "ok": True},
    source={"backend": "llama.cpp", "media": ["noise", "drawn"]},
)  # fmt: skip


# The layout, written by hand: (GGUF value type, bytes).

Typed = tuple[int, bytes]
U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def u32(value: int) -> Typed:
    return U32, struct.pack("<I", value)


def f32(value: float) -> Typed:
    return F32, struct.pack("<f", value)


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def string(value: str | bytes) -> Typed:
    return STRING, text(value)


def array(item: int, count: int, content: bytes) -> Typed:
    return ARRAY, struct.pack("<IQ", item, count) + content


def f32s(*values: float) -> Typed:
    return array(F32, len(values), np.array(values, "<f4").tobytes())


KEYS: dict[str, Typed] = {
    "general.architecture": string("controlvector"),
    "controlvector.model_hint": string("llama"),
    "controlvector.layer_count": u32(1),
    "mars.version": u32(4),
    "mars.sha256": string("0" * 64),
    "mars.layer": u32(3),
    "mars.centroid.safe": f32s(*SAFE),
    "mars.centroid.unsafe": f32s(*UNSAFE),
    "mars.readout": f32s(*READOUT),
    "mars.shift.text": f32s(0, 0, 0, 0),
    "mars.spread.text": f32(0.125),
    "mars.threshold.text": f32(0.375),
    "mars.shift.image": f32s(*SHIFT),
    "mars.spread.image": f32(0.25),
    "mars.threshold.image": f32(-0.5),
    "mars.gate.ramp": f32(1),
    "mars.trust.limit": f32(1.75),
    "mars.model.architecture": string("llama"),
    "mars.model.name": string("Tiny Chat"),
    "mars.model.n_layer": u32(8),
    "mars.model.n_embd": u32(4),
    "mars.model.quantization": string("Q4_K_M"),
    "mars.model.chat_template_sha256": string("ab" * 32),
    "mars.model.tokenizer_sha256": string("cd" * 32),
    "mars.model.chat_template_kwargs": string("{}"),
    "mars.model.weights_sha256": string("ef" * 32),
    "mars.model.mmproj_sha256": string(""),
    "mars.calibration.prompts": u32(64),
    "mars.calibration.auroc": f32(0.9375),
    "mars.calibration.t": f32s(0.5, 1),
    "mars.calibration.layers": array(I32, 2, struct.pack("<ii", 3, 5)),
    "mars.calibration.ok": (BOOL, b"\x01"),
    "mars.source.backend": string("llama.cpp"),
    "mars.source.media": array(STRING, 2, text("noise") + text("drawn")),
}


def gguf_file(
    changes: Mapping[str, Typed | None] | None = None,
    *,
    further: bytes = b"",
    tensors: list[tuple[str, list[int], int, int]] | None = None,
    data: np.ndarray | None = None,
    **header: int,
) -> bytes:
    """The bytes of a vector file: KEYS with ``changes`` (None drops a key), ``further`` raw keys,
    tensors as (name, shape, type, offset), and header fields that may lie. Its hash is right, where
    it has one."""
    keys = {k: v for k, v in (KEYS | dict(changes or {})).items() if v is not None}
    tensors = [("direction.3", [4], 0, 0)] if tensors is None else tensors
    raw = b"GGUF" + struct.pack(
        "<IQQ",
        header.get("version", 3),
        header.get("n_tensors", len(tensors)),
        header.get("n_keys", len(keys)),
    )
    for key, (kind, content) in keys.items():
        raw += text(key) + struct.pack("<I", kind) + content
    raw += further
    for name, shape, kind, offset in tensors:
        raw += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    raw += bytes(-len(raw) % 32)
    body = (UNSAFE - SAFE if data is None else data).astype("<f4").tobytes()
    raw += body + bytes(-len(body) % 32)
    before, mark, after = raw.partition(text("mars.sha256") + struct.pack("<IQ", STRING, 64))
    digest = hashlib.sha256(raw).hexdigest().encode()
    return before + mark + digest + after[64:] if mark and after[:64] == b"0" * 64 else raw


def refused(path: Path) -> str:
    """Why ``path`` is refused, without the path itself, which every refusal must name first."""
    with pytest.raises(VectorError) as caught:
        read_vector(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    return message.removeprefix(f"{path}: ")
