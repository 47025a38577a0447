"""Reads vector files, and trusts nothing in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf.errors import VectorError
from mars_gguf.modalities import MODALITIES
from mars_gguf.steering import Array, Geometry
from mars_gguf.vectors.fingerprint import ModelFingerprint
from mars_gguf.vectors.format import (
    BY_MODALITY,
    FREE,
    KEYS,
    MAX_FILE_BYTES,
    MAX_LISTED,
    OLDER,
    VERSION,
    Value,
    expect,
)
from mars_gguf.vectors.gguf_file import GgufFile
from mars_gguf.vectors.seal import require_seal
from mars_gguf.vectors.vector import Vector

Keys = dict[str, Any]


def read_vector(path: str | os.PathLike[str]) -> Vector:
    """Reads and checks the vector file at ``path``.

    Raises VectorError naming what was found and what was expected: not a GGUF, damaged, too large,
    no MARS vector, an unknown version, a value out of range, a direction that is not
    unsafe - safe.
    """
    try:
        return read_file(Path(path))
    except VectorError as error:
        raise VectorError(f"{path}: {error}") from None
    except OSError as error:
        raise VectorError(f"{path}: cannot be read: {error.strerror}") from None


def read_file(path: Path) -> Vector:
    """Reads as `read_vector`, but errors do not name the file, and an OSError is one."""
    if not path.is_file():
        raise VectorError("no such vector file. Make one with python -m mars_gguf.convert.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise VectorError(
            f"{size} bytes, expected at most {MAX_FILE_BYTES}: this is no steering vector. "
            "Is it the model?"
        )
    with path.open("rb") as file:
        return parse_vector(file.read(size))


def parse_vector(data: bytes) -> Vector:
    """Reads the vector whose file holds ``data``. Raises VectorError as `read_vector` does."""
    file = GgufFile(data)
    _require_ours(file.keys)
    require_seal(data, file)
    return vector_in(file)


def vector_in(file: GgufFile) -> Vector:
    """Checks and returns the vector that ``file`` holds, whatever its hash. Raises VectorError."""
    _require_ours(file.keys)
    with np.errstate(over="ignore", invalid="ignore"):  # of huge values, which are then refused
        return _vector(file.keys, file.tensors)


def _require_ours(keys: Keys) -> None:
    """Raises VectorError unless these are the keys of a MARS vector of this version."""
    architecture = keys.get("general.architecture")
    if type(architecture) is not str or architecture != "controlvector":
        raise VectorError(
            f"found a GGUF of architecture {architecture!r:.80}, expected 'controlvector'. "
            "Give the vector that python -m mars_gguf.convert wrote."
        )
    if "mars.version" not in keys:
        raise VectorError(
            "this control vector has no mars.* metadata (made by another tool): it says nothing of "
            "centroids or shifts. Make one with python -m mars_gguf.convert."
        )
    version = _get(keys, "mars.version", int)
    if version in OLDER:
        raise VectorError(
            f"mars.version: found {version}, expected {VERSION}: since then {OLDER[version]}. "
            "Convert the model again."
        )
    expect(version == VERSION, "mars.version", version, f"{VERSION}. Update mars-gguf")
    unknown = sorted(key for key in keys if key.startswith("mars.") and not _is_known(key))
    expect(not unknown, "keys", unknown, "only those of this version")


def _is_known(key: str) -> bool:
    _, section, *rest = key.split(".")
    name = ".".join(rest)
    if section in BY_MODALITY:
        return name in MODALITIES
    if section == "model":
        return name in ModelFingerprint.__dataclass_fields__
    return key in KEYS or section in FREE


def _vector(keys: Keys, tensors: dict[str, Array]) -> Vector:
    layer = _get(keys, "mars.layer", int)
    name = f"direction.{layer}"
    expect(list(tensors) == [name], "tensors", sorted(tensors), f"exactly {name}")
    geometry, model = _geometry(keys), _model(keys)
    vector = Vector(layer, geometry, model, _section(keys, "calibration"), _section(keys, "source"))
    vector.check()
    tensor, direction = tensors[name], geometry.direction
    expect(tensor.shape == (model.n_embd,), name, tensor.shape, f"[{model.n_embd}]")
    agrees = np.allclose(tensor, direction, rtol=1e-4, atol=1e-4 * np.abs(direction).max())
    expect(agrees, name, "another direction", "mars.centroid.unsafe - mars.centroid.safe")
    return vector


def _geometry(keys: Keys) -> Geometry:
    prefix = "mars.spread."
    spreads = {
        key.removeprefix(prefix): _get(keys, key, float) for key in keys if key.startswith(prefix)
    }
    return Geometry(
        safe=_get(keys, "mars.centroid.safe", np.ndarray),
        unsafe=_get(keys, "mars.centroid.unsafe", np.ndarray),
        readout=_get(keys, "mars.readout", np.ndarray),
        shifts={m: _get(keys, f"mars.shift.{m}", np.ndarray) for m in spreads},
        spreads=spreads,
        thresholds={m: _get(keys, f"mars.threshold.{m}", float) for m in spreads},
        gate_ramp=_get(keys, "mars.gate.ramp", float),
        trust_limit=_get(keys, "mars.trust.limit", float),
    )


def _model(keys: Keys) -> ModelFingerprint:
    return ModelFingerprint(
        **{
            name: _get(keys, f"mars.model.{name}", int if name.startswith("n_") else str)
            for name in ModelFingerprint.__dataclass_fields__
            if name != "reasoning" or f"mars.model.{name}" in keys
        }
    )


def _section(keys: Keys, section: str) -> dict[str, Value]:
    prefix = f"mars.{section}."
    found: dict[str, Value] = {}
    for key, value in keys.items():
        if key.startswith(prefix):
            if isinstance(value, np.ndarray):
                few = len(value) <= MAX_LISTED
                expect(few, key, f"{len(value)} values", f"at most {MAX_LISTED}")
                value = value.tolist()
            found[key.removeprefix(prefix)] = value
    return found


def _get(keys: Keys, key: str, kind: type[Any]) -> Any:
    if key not in keys:
        raise VectorError(f"{key} is missing. Convert the model again.")
    value: Any = keys[key]
    array = kind is np.ndarray
    good = type(value) is kind and (not array or value.dtype == np.float32)
    expected = "an array of float32" if array else kind.__name__
    expect(good, key, type(value).__name__, expected)
    return value
