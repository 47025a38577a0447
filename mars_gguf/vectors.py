"""The vector file: a GGUF control vector that stock llama.cpp loads, with the MARS geometry in
its metadata.

Layout (GGUF version 3, little-endian):

    general.architecture     "controlvector"
    controlvector.model_hint, controlvector.layer_count = 1
    tensor direction.<l>     F32 [n_embd], r = mu_u - mu_s at block l (0-based), not normalised
    mars.version             u32, 1
    mars.layer               u32
    mars.centroid.safe, mars.centroid.unsafe, mars.shift.<modality>   f32 [n_embd]
    mars.readout             f32 [n_embd], w; may be absent: then the projection on r
    mars.spread.<modality>, mars.gate.open, mars.gate.ramp, mars.trust.limit      f32
    mars.model.*             what the vector was measured on
    mars.calibration.*, mars.source.*   what was measured, and with what

llama.cpp reads no keys and rejects any further tensor (common/common.cpp,
common_control_vector_load), so all else is metadata. Reading takes the file for hostile: every size
is bounded before it is allocated, every value is checked before any is used, nothing is executed.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mars_gguf.cli import command, printable
from mars_gguf.errors import VectorError
from mars_gguf.files import atomic
from mars_gguf.steering import Array, Geometry, projection

if TYPE_CHECKING:
    import gguf

VERSION = 1
MAX_FILE_BYTES = 64 << 20
MAX_KEYS = 1024
MAX_STRING_BYTES = 1 << 20

Value = bool | int | float | str | list[Any]


@dataclass(frozen=True)
class ModelFingerprint:
    """What identifies the model a vector belongs to. Empty strings mean "not known"."""

    architecture: str
    name: str
    n_layer: int
    n_embd: int
    quantization: str
    chat_template_sha256: str
    tokenizer_sha256: str

    def differences(self, other: ModelFingerprint, *, force: bool = False) -> list[str]:
        """One line for each field in which ``other`` differs from self and must not.

        ``force`` allows another name, quantization or chat template; the architecture, the shape
        and the tokenizer must always agree.
        """
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{key}: the vector was made for {_short(mine[key])}, this model has "
            f"{_short(theirs[key])}"
            for key in self.differing(other, force=force)
        ]

    def differing(self, other: ModelFingerprint, *, force: bool = False) -> list[str]:
        """The names of those fields."""
        forgivable = {"name", "quantization", "chat_template_sha256"}
        mine, theirs = asdict(self), asdict(other)
        return [
            key
            for key in mine
            if mine[key] != theirs[key]
            and mine[key] != ""
            and theirs[key] != ""
            and not (force and key in forgivable)
        ]


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text


@dataclass(frozen=True)
class Vector:
    """One steering vector: the geometry of one block and where it comes from."""

    layer: int
    geometry: Geometry
    model: ModelFingerprint
    calibration: Mapping[str, Value] = field(default_factory=dict)
    source: Mapping[str, Value] = field(default_factory=dict)

    @property
    def modalities(self) -> list[str]:
        """Modalities that were measured, "text" first."""
        return sorted(self.geometry.spreads, key=lambda m: (m != "text", m))

    def check(self) -> None:
        """Raise VectorError unless every value is one that the runtime can use."""
        g, n = self.geometry, self.model.n_embd
        _expect(1 <= n <= 1 << 17, "mars.model.n_embd", n, "1 to 131072")
        _expect(2 <= self.model.n_layer <= 4096, "mars.model.n_layer", self.model.n_layer, ">= 2")
        _expect(
            1 <= self.layer < self.model.n_layer,
            "mars.layer",
            self.layer,
            f"1 to {self.model.n_layer - 1} (llama.cpp cannot steer block 0)",
        )
        arrays = {
            "mars.centroid.safe": g.safe,
            "mars.centroid.unsafe": g.unsafe,
            "mars.readout": g.readout,
        }
        arrays |= {f"mars.shift.{m}": shift for m, shift in g.shifts.items()}
        for key, array in arrays.items():
            _expect(array.shape == (n,), key, f"shape {array.shape}", f"({n},) (n_embd)")
            _expect(bool(np.isfinite(array).all()), key, "NaN or infinite values", "finite values")
        _expect(0 < g.distance < math.inf, "direction", f"length {g.distance}", "a length above 0")
        unit = float(g.readout.astype(np.float64) @ g.direction.astype(np.float64))
        _expect(abs(unit - 1) < 1e-2, "mars.readout", f"{unit:.3g} along the direction", "1")
        _expect("text" in g.spreads, "mars.spread.text", "nothing", "the spread of text prompts")
        _expect(
            g.shifts.keys() == g.spreads.keys(),
            "mars.shift.*",
            sorted(g.shifts),
            f"the modalities of mars.spread.*, {sorted(g.spreads)}",
        )
        _expect(
            not g.shifts["text"].any(), "mars.shift.text", "a shift", "none: text is the origin"
        )
        scalars = {f"mars.spread.{m}": s for m, s in g.spreads.items()}
        scalars |= {"mars.gate.ramp": g.gate_ramp, "mars.trust.limit": g.trust_limit}
        for key, number in scalars.items():
            _expect(0 < number < math.inf, key, number, "a finite number above 0")
        _expect(math.isfinite(g.gate_opens), "mars.gate.open", g.gate_opens, "a finite number")

    def require_model(self, model: ModelFingerprint, *, force: bool = False) -> None:
        """Raise VectorError, naming what differs, unless the vector was made for ``model``."""
        differences = self.model.differences(model, force=force)
        if differences:
            soft = not self.model.differences(model, force=True)
            advice = (
                "Convert this model, or pass --force (force=True) to use the vector all the same."
                if soft
                else "Convert this model with python -m mars_gguf.convert."
            )
            raise VectorError(
                "the vector was made for another model:\n  "
                + "\n  ".join(differences)
                + f"\n{advice}"
            )


def _expect(good: bool, key: str, found: object, expected: str) -> None:
    if not good:
        raise VectorError(f"{key}: found {found}, expected {expected}. Convert the model again.")


def write_vector(vector: Vector, path: str | os.PathLike[str]) -> None:
    """Write ``vector`` to ``path`` as GGUF, atomically: the file is whole or not there.

    Raises VectorError for values that could not be read back, MarsError if the file system refuses.
    """
    with atomic(path) as temporary:
        write_contents(vector, temporary)


def write_contents(vector: Vector, path: Path) -> None:
    """Write ``vector`` into the file at ``path``, and read it back. For callers with their own
    `files.atomic`; raises VectorError as write_vector does, and OSError."""
    vector.check()
    try:
        _write(vector, path)
        _read(path)
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
        writer.add_uint32("mars.layer", vector.layer)
        for name, array in (("centroid.safe", safe), ("centroid.unsafe", unsafe)):
            writer.add_array(f"mars.{name}", array.tolist())
        writer.add_array("mars.readout", _float32(g.readout).tolist())
        for modality in vector.modalities:
            writer.add_array(f"mars.shift.{modality}", _float32(g.shifts[modality]).tolist())
            writer.add_float32(f"mars.spread.{modality}", g.spreads[modality])
        writer.add_float32("mars.gate.open", g.gate_opens)
        writer.add_float32("mars.gate.ramp", g.gate_ramp)
        writer.add_float32("mars.trust.limit", g.trust_limit)
        for section, values in (
            ("model", asdict(vector.model)),
            ("calibration", vector.calibration),
            ("source", vector.source),
        ):
            for key, value in values.items():
                _add(writer, f"mars.{section}.{key}", value)
        # Of the rounded centroids: large, nearly equal entries would not give the rounded r.
        writer.add_tensor(f"direction.{vector.layer}", unsafe - safe)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


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


def read_vector(path: str | os.PathLike[str]) -> Vector:
    """Read and check the vector file at ``path``.

    Raises VectorError naming what was found and what was expected: not a GGUF, damaged, too large,
    no MARS vector, an unknown version, a value out of range, a direction that is not
    unsafe - safe.
    """
    try:
        return _read(Path(path))
    except VectorError as error:
        raise VectorError(f"{path}: {error}") from None
    except OSError as error:
        raise VectorError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: Path) -> Vector:
    if not path.is_file():
        raise VectorError("no such vector file. Make one with python -m mars_gguf.convert.")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise VectorError(
            f"{size} bytes, expected at most {MAX_FILE_BYTES}: this is no steering vector. "
            "Is it the model?"
        )
    with path.open("rb") as file:
        return _vector(*_Reader(file, size).read())


def _vector(keys: dict[str, Any], tensors: dict[str, Array]) -> Vector:
    architecture = keys.get("general.architecture")
    if type(architecture) is not str or architecture != "controlvector":
        raise VectorError(
            f"found a GGUF of architecture {architecture!r}, expected 'controlvector'. "
            "Give the vector that python -m mars_gguf.convert wrote."
        )
    if "mars.version" not in keys:
        raise VectorError(
            "this control vector has no mars.* metadata (made by another tool): it says nothing of "
            "centroids or shifts. Make one with python -m mars_gguf.convert."
        )
    version = _get(keys, "mars.version", int)
    _expect(version == VERSION, "mars.version", version, f"{VERSION}. Update mars-gguf")
    layer = _get(keys, "mars.layer", int)
    name = f"direction.{layer}"
    _expect(list(tensors) == [name], "tensors", sorted(tensors), f"exactly {name}")
    spreads = {
        key.removeprefix("mars.spread."): _get(keys, key, float)
        for key in keys
        if key.startswith("mars.spread.")
    }
    safe = _get(keys, "mars.centroid.safe", np.ndarray)
    unsafe = _get(keys, "mars.centroid.unsafe", np.ndarray)
    if "mars.readout" in keys:
        readout = _get(keys, "mars.readout", np.ndarray)
    else:
        readout = _plain_readout(safe, unsafe)
    geometry = Geometry(
        safe=safe,
        unsafe=unsafe,
        readout=readout,
        shifts={m: _get(keys, f"mars.shift.{m}", np.ndarray) for m in spreads},
        spreads=spreads,
        gate_opens=_get(keys, "mars.gate.open", float),
        gate_ramp=_get(keys, "mars.gate.ramp", float),
        trust_limit=_get(keys, "mars.trust.limit", float),
    )
    model = ModelFingerprint(
        **{
            key: _get(keys, f"mars.model.{key}", int if key.startswith("n_") else str)
            for key in ModelFingerprint.__dataclass_fields__
        }
    )
    vector = Vector(layer, geometry, model, _section(keys, "calibration"), _section(keys, "source"))
    vector.check()
    tensor, direction = tensors[name], geometry.direction
    _expect(tensor.shape == (model.n_embd,), name, tensor.shape, f"[{model.n_embd}]")
    agrees = np.allclose(tensor, direction, rtol=1e-4, atol=1e-4 * np.abs(direction).max())
    _expect(agrees, name, "another direction", "mars.centroid.unsafe - mars.centroid.safe")
    return vector


def _plain_readout(safe: Array, unsafe: Array) -> Array:
    same = safe.shape == unsafe.shape
    _expect(same, "mars.centroid.unsafe", unsafe.shape, f"{safe.shape}, as mars.centroid.safe")
    _expect(bool((unsafe != safe).any()), "direction", "length 0.0", "a length above 0")
    return projection(unsafe - safe).astype(np.float32)


def _section(keys: dict[str, Any], section: str) -> dict[str, Value]:
    prefix = f"mars.{section}."
    return {
        key.removeprefix(prefix): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in keys.items()
        if key.startswith(prefix)
    }


def _get(keys: dict[str, Any], key: str, kind: type[Any]) -> Any:
    if key not in keys:
        raise VectorError(f"{key} is missing. Convert the model again.")
    value: Any = keys[key]
    good = type(value) is kind and (kind is not np.ndarray or value.dtype == np.float32)
    _expect(
        good,
        key,
        type(value).__name__,
        "an array of float32" if kind is np.ndarray else kind.__name__,
    )
    return value


# GGUF value types (gguf.md): struct formats of the scalars, then string and array.
_SCALARS = ["B", "b", "H", "h", "I", "i", "f", "?", "Q", "q", "d"]
_SCALAR_TYPES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), _SCALARS, strict=True))
_STRING, _ARRAY = 8, 9
_F32 = 0  # of tensors


class _Reader:
    """A GGUF reader for untrusted files: lengths are compared with what is left of the file
    before anything of that length is read, and counts are bounded."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self) -> tuple[dict[str, Any], dict[str, Array]]:
        if self._bytes(4) != b"GGUF":
            raise VectorError("not a GGUF file (the first four bytes are not 'GGUF')")
        version = self._scalar("I")
        if version not in (2, 3):
            raise VectorError(f"GGUF version {version}, expected 2 or 3")
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        if n_keys > MAX_KEYS or n_tensors != 1:
            raise VectorError(
                f"{n_keys} keys and {n_tensors} tensors, expected at most {MAX_KEYS} and exactly "
                "1. Is it a model, or a control vector made by another tool?"
            )
        keys: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()
            if key in keys:
                raise VectorError(f"key {key!r} appears twice")
            keys[key] = self._value(self._scalar("I"))
        return keys, dict([self._tensor(keys)])

    def _tensor(self, keys: dict[str, Any]) -> tuple[str, Array]:
        name, n_dims = self._string(), self._scalar("I")
        if n_dims != 1:
            raise VectorError(f"tensor {name!r} has {n_dims} dimensions, expected 1")
        length, kind, offset = self._scalar("Q"), self._scalar("I"), self._scalar("Q")
        if kind != _F32:
            raise VectorError(f"tensor {name!r} has type {kind}, expected 0 (F32)")
        alignment = keys.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 4096:
            raise VectorError(f"general.alignment: found {alignment}, expected 1 to 4096")
        start = -(-self.file.tell() // alignment) * alignment + offset
        if start + 4 * length > self.size:
            raise VectorError(f"truncated: tensor {name!r} ends past the end of the file")
        self.file.seek(start)
        return name, np.frombuffer(self._bytes(4 * length), "<f4").astype(np.float32)

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise VectorError(f"truncated: {count} bytes expected at offset {self.file.tell()}")
        return self.file.read(count)

    def _scalar(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self._bytes(struct.calcsize(kind)))[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > MAX_STRING_BYTES:
            raise VectorError(f"a string of {length} bytes, expected at most {MAX_STRING_BYTES}")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise VectorError("a string that is not UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind in _SCALAR_TYPES:
            return self._scalar(_SCALAR_TYPES[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise VectorError(f"unknown GGUF value type {kind}")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALAR_TYPES:
            dtype = np.dtype("<" + _SCALAR_TYPES[item])
            return np.frombuffer(self._bytes(dtype.itemsize * count), dtype).copy()
        if item == _STRING and count <= MAX_KEYS:
            return [self._string() for _ in range(count)]
        raise VectorError(f"an array of {count} values of type {item}: not expected here")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal: a vector's identity in logs and reports."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def describe(vector: Vector) -> str:
    """What a vector holds, as lines of text for a person."""
    g, m = vector.geometry, vector.model
    lines = [
        f"model       {m.name or m.architecture} ({m.architecture}, {m.n_layer} blocks, "
        f"n_embd {m.n_embd}, {m.quantization or 'quantization unknown'})",
        f"layer       {vector.layer}",
        f"direction   D = {g.distance:.4g}",
        f"gate        opens at z = {g.gate_opens:.3g}, ramp {g.gate_ramp:.3g}",
        f"trust limit t = {g.trust_limit:.3g}",
    ]
    for modality in vector.modalities:
        shift = float(np.linalg.norm(g.shifts[modality])) / g.distance
        lines.append(
            f"{modality:11} spread {g.spreads[modality]:.3g}, shift {shift:.3g} D, gate opens at "
            f"t = {g.gate_opens * g.spreads[modality]:.3g}"
        )
    for title, section in (("calibration", vector.calibration), ("source", vector.source)):
        for key, value in section.items():
            text = f"{len(value)} values" if isinstance(value, list) else str(value)
            lines.append(f"{title:11} {key} = {text}")
    return "\n".join(map(printable, lines))


def main(argv: list[str] | None = None) -> None:
    """``python -m mars_gguf.vectors FILE``: check a vector file and print what it holds."""
    parser = argparse.ArgumentParser(prog="mars_gguf.vectors", description=main.__doc__)
    parser.add_argument("file", metavar="FILE", help="a vector written by mars_gguf.convert")
    args = parser.parse_args(argv)
    with command():
        vector = read_vector(args.file)
        print(describe(vector))
        print(f"sha256      {file_sha256(args.file)}")


if __name__ == "__main__":
    main()
