"""Writes vector files."""

from __future__ import annotations

import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mars_gguf.errors import VectorError
from mars_gguf.files import atomic
from mars_gguf.steering import Array
from mars_gguf.vectors.fingerprint import ModelFingerprint
from mars_gguf.vectors.format import HASH, VERSION, Value
from mars_gguf.vectors.gguf_file import GgufFile
from mars_gguf.vectors.reader import vector_in
from mars_gguf.vectors.seal import BLANK, sealed
from mars_gguf.vectors.vector import Vector

if TYPE_CHECKING:
    import gguf


def write_vector(vector: Vector, path: str | os.PathLike[str]) -> None:
    """Writes ``vector`` to ``path`` as GGUF, atomically: the file is whole or not there.

    Raises VectorError for values that could not be read back, MarsError if the file system refuses.
    """
    with atomic(path) as temporary:
        write_contents(vector, temporary)


def write_contents(vector: Vector, path: Path) -> None:
    """Writes ``vector`` into the file at ``path``, read back once.

    For callers with their own `files.atomic`; raises VectorError as `write_vector` does, and
    OSError.
    """
    vector.check()
    try:
        _write(vector, path)
        data = path.read_bytes()
        file = GgufFile(data)
        vector_in(file)
        path.write_bytes(sealed(data, file))
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise VectorError(f"this vector cannot be written: {error}") from error


def _write(vector: Vector, path: Path) -> None:
    import gguf  # slow to import, and whoever only steers writes nothing

    g = vector.geometry
    safe, unsafe = _float32(g.safe), _float32(g.unsafe)
    writer = gguf.GGUFWriter(path, "controlvector")
    try:
        _add(writer, "controlvector.model_hint", vector.model.architecture)
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_uint32("mars.version", VERSION)
        _add(writer, HASH, BLANK)
        writer.add_uint32("mars.layer", vector.layer)
        writer.add_array("mars.centroid.safe", safe.tolist())
        writer.add_array("mars.centroid.unsafe", unsafe.tolist())
        writer.add_array("mars.readout", _float32(g.readout).tolist())
        for modality in vector.modalities:
            writer.add_array(f"mars.shift.{modality}", _float32(g.shifts[modality]).tolist())
            writer.add_float32(f"mars.spread.{modality}", g.spreads[modality])
            writer.add_float32(f"mars.threshold.{modality}", g.thresholds[modality])
        writer.add_float32("mars.gate.ramp", g.gate_ramp)
        writer.add_float32("mars.trust.limit", g.trust_limit)
        measured = {"calibration": vector.calibration, "source": vector.source}
        for section, values in {"model": _stored(vector.model), **measured}.items():
            for key, value in values.items():
                _add(writer, f"mars.{section}.{key}", value)
        # Of the rounded centroids: large, nearly equal entries would not give the rounded r.
        writer.add_tensor(f"direction.{vector.layer}", unsafe - safe)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _stored(model: ModelFingerprint) -> dict[str, Value]:
    """The fields that are written: files of models that do not think are as they always were."""
    return {k: v for k, v in asdict(model).items() if k != "reasoning" or v}


def _float32(array: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ascontiguousarray(array, np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        import gguf

        # Not add_string, which drops empty strings.
        writer.add_key_value(key, value, gguf.GGUFValueType.STRING)
    elif value:  # gguf-py writes no empty arrays
        writer.add_array(key, value)
