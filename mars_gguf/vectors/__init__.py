"""The vector file: a GGUF control vector that stock llama.cpp loads, with the MARS geometry in
its metadata.

Layout (GGUF version 3, little-endian):

    general.architecture     "controlvector"
    controlvector.model_hint, controlvector.layer_count = 1
    tensor direction.<l>     F32 [n_embd], r = mu_u - mu_s at block l (0-based), not normalised
    mars.version             u32, 4
    mars.sha256              string, the hash of the file (mars_gguf.vectors.seal)
    mars.layer               u32
    mars.centroid.safe, mars.centroid.unsafe, mars.shift.<modality>   f32 [n_embd]
    mars.readout             f32 [n_embd], w
    mars.spread.<modality>, mars.threshold.<modality>, mars.gate.ramp, mars.trust.limit   f32
    mars.model.*             what the vector was measured on; reasoning only of models that think
    mars.calibration.*, mars.source.*   what was measured, and with what

llama.cpp reads no keys and rejects any further tensor (common/common.cpp,
common_control_vector_load), so all else is metadata. Reading takes the file for hostile: every size
is bounded before it is allocated, every value is checked before any is used, no unknown key of ours
is passed over, nothing is executed.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mars_gguf.errors import VectorError
from mars_gguf.files import atomic
from mars_gguf.reasoning import REASONINGS
from mars_gguf.steering import Array, Geometry
from mars_gguf.vectors import seal
from mars_gguf.vectors.reader import Reader
from mars_gguf.vectors.seal import sealed

if TYPE_CHECKING:
    import gguf

__all__ = [
    "ModelFingerprint", "Vector", "VectorError", "parse_vector", "read_vector", "sealed",
    "write_contents", "write_vector",
]  # fmt: skip

VERSION = 4
OLDER = {
    1: "several still pictures are an image, too, and video means a film; and the chat template's "
    "variables are part of what is measured",
    2: "the gate has a threshold for each modality",
    3: "a vector knows the weights that it was measured with, and its own hash",
}
MAX_FILE_BYTES = 64 << 20
MAX_LISTED = 4096  # values of an array of what was measured

MODALITIES = ("text", "image", "video")
KEYS = {
    "mars.version", seal.KEY, "mars.layer", "mars.centroid.safe", "mars.centroid.unsafe",
    "mars.readout", "mars.gate.ramp", "mars.trust.limit",
}  # fmt: skip
# Bounds of plausibility, in units of t; of the ramp, in spreads.
SPREADS = 1e-6, 10.0
THRESHOLDS = -10.0, 10.0
RAMPS = 1e-3, 1e3
LIMITS = 0.05, 10.0
SHIFTS = -100.0, 100.0  # along the read-out
READOUTS = 0.99, 1e4  # its length times D: 1 is the projection's

FORGIVABLE = {
    "name", "quantization", "chat_template_sha256", "chat_template_kwargs", "weights_sha256",
    "mmproj_sha256", "reasoning",
}  # fmt: skip

Value = bool | int | float | str | list[Any]


@dataclass(frozen=True)
class ModelFingerprint:
    """What identifies the model a vector belongs to. Empty strings mean "not known"; of
    ``reasoning`` (mars_gguf.reasoning) that the model does not think, or that it was not known to.
    """

    architecture: str
    name: str
    n_layer: int
    n_embd: int
    quantization: str
    chat_template_sha256: str
    tokenizer_sha256: str
    chat_template_kwargs: str = "{}"  # as JSON, keys sorted
    weights_sha256: str = ""  # of a sample of them, as of the mmproj's
    mmproj_sha256: str = ""
    reasoning: str = ""

    def differences(self, other: ModelFingerprint, *, force: bool = False) -> list[str]:
        """One line for each field in which ``other`` differs from self and must not.

        ``force`` allows another name, quantization, other weights, another mmproj or chat template
        with its variables, and another way of thinking; the architecture, the shape and the
        tokenizer must always agree.
        """
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{key}: the vector was made for {_short(mine[key])}, this model has "
            f"{_short(theirs[key])}"
            for key in self.differing(other, force=force)
        ]

    def differing(self, other: ModelFingerprint, *, force: bool = False) -> list[str]:
        """The names of those fields."""
        mine, theirs = asdict(self), asdict(other)
        return [
            key
            for key in mine
            if mine[key] != theirs[key]
            and (key == "reasoning" or (mine[key] != "" and theirs[key] != ""))
            and not (force and key in FORGIVABLE)
        ]


def _short(value: object) -> str:
    text = str(value) or "none"
    return text[:12] + "..." if len(text) == 64 else f"{text:.100}"


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

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that all was measured under; None if it was not one alone."""
        value = self.source.get("system_prompt")
        return value if isinstance(value, str) else None

    def other_system_prompt(self, system: str | None) -> str | None:
        """What is to be said where the vector was measured under another system prompt than
        ``system``; None if there is nothing to say."""
        if self.system_prompt is None or self.system_prompt == (system or "").strip():
            return None
        return (
            f"the vector was measured under the system prompt {self.system_prompt[:60]!r}, and "
            f"{'another' if system else 'none'} is in use: its gate was certified for that one "
            "alone"
        )

    def check(self) -> None:
        """Raise VectorError unless every value is one that the runtime can use."""
        g, n = self.geometry, self.model.n_embd
        _expect(1 <= n <= 1 << 17, "mars.model.n_embd", n, "1 to 131072")
        reasoning = self.model.reasoning
        known = ", ".join(REASONINGS)
        _expect(reasoning in ("", *REASONINGS), "mars.model.reasoning", reasoning, known)
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
        unknown = sorted(g.spreads.keys() - set(MODALITIES))
        _expect(not unknown, "mars.spread.*", unknown, f"some of {', '.join(MODALITIES)}")
        for key, measured in ("mars.shift.*", g.shifts), ("mars.threshold.*", g.thresholds):
            _expect(
                measured.keys() == g.spreads.keys(),
                key,
                sorted(measured),
                f"the modalities of mars.spread.*, {sorted(g.spreads)}",
            )
        _expect(
            not g.shifts["text"].any(), "mars.shift.text", "a shift", "none: text is the origin"
        )
        for m, number in g.thresholds.items():
            _expect(math.isfinite(number), f"mars.threshold.{m}", number, "a finite number")
        scalars = {f"mars.spread.{m}": s for m, s in g.spreads.items()}
        scalars |= {"mars.gate.ramp": g.gate_ramp, "mars.trust.limit": g.trust_limit}
        for key, number in scalars.items():
            _expect(0 < number < math.inf, key, number, "a finite number above 0")

    def require_plausible(self) -> None:
        """Raise VectorError for values that no measurement gives: a file that has them would never
        steer, or push so far that no words come out."""
        g = self.geometry
        scalars = [(f"mars.spread.{m}", spread, SPREADS) for m, spread in g.spreads.items()]
        scalars += [(f"mars.threshold.{m}", t, THRESHOLDS) for m, t in g.thresholds.items()]
        scalars += [("mars.gate.ramp", g.gate_ramp, RAMPS)]
        scalars += [("mars.trust.limit", g.trust_limit, LIMITS)]
        w = g.readout.astype(np.float64)
        along = {m: float(w @ shift.astype(np.float64)) for m, shift in g.shifts.items()}
        scalars += [(f"mars.shift.{m}", t, SHIFTS) for m, t in along.items()]
        scalars += [("mars.readout", float(np.linalg.norm(w)) * g.distance, READOUTS)]
        for key, number, (least, most) in scalars:
            _expect(least <= number <= most, key, number, f"{least:g} to {most:g}")

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
        raise VectorError(
            f"{key}: found {found!s:.200}, expected {expected}. Convert the model again."
        )


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
        path.write_bytes(sealed(path.read_bytes()))
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
        _add(writer, seal.KEY, seal.BLANK)
        writer.add_uint32("mars.layer", vector.layer)
        for name, array in (("centroid.safe", safe), ("centroid.unsafe", unsafe)):
            writer.add_array(f"mars.{name}", array.tolist())
        writer.add_array("mars.readout", _float32(g.readout).tolist())
        for modality in vector.modalities:
            writer.add_array(f"mars.shift.{modality}", _float32(g.shifts[modality]).tolist())
            writer.add_float32(f"mars.spread.{modality}", g.spreads[modality])
            writer.add_float32(f"mars.threshold.{modality}", g.thresholds[modality])
        writer.add_float32("mars.gate.ramp", g.gate_ramp)
        writer.add_float32("mars.trust.limit", g.trust_limit)
        for section, values in (
            ("model", _stored(vector.model)),
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


def _stored(model: ModelFingerprint) -> dict[str, Value]:
    """What is written of a model: files of models that do not think are as they always were."""
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
        return parse_vector(file.read(size))


def parse_vector(data: bytes) -> Vector:
    """The vector whose file holds ``data``. Raises VectorError as read_vector does."""
    reader = Reader(data)
    keys, tensors = reader.read()
    _require_ours(keys)
    seal.require_seal(data, keys.get(seal.KEY), reader.places.get(seal.KEY, 0))
    with np.errstate(over="ignore", invalid="ignore"):  # of huge values, which are then refused
        return _vector(keys, tensors)


def _require_ours(keys: dict[str, Any]) -> None:
    """Raise VectorError unless these are the keys of a MARS vector of this version."""
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
    _expect(version == VERSION, "mars.version", version, f"{VERSION}. Update mars-gguf")
    unknown = sorted(key for key in keys if key.startswith("mars.") and not _is_known(key))
    _expect(not unknown, "keys", unknown, "only those of this version")


def _is_known(key: str) -> bool:
    _, section, *rest = key.split(".")
    name = ".".join(rest)
    if section in ("shift", "spread", "threshold"):
        return name in MODALITIES
    if section == "model":
        return name in ModelFingerprint.__dataclass_fields__
    return key in KEYS or section in ("calibration", "source")


def _vector(keys: dict[str, Any], tensors: dict[str, Array]) -> Vector:
    layer = _get(keys, "mars.layer", int)
    name = f"direction.{layer}"
    _expect(list(tensors) == [name], "tensors", sorted(tensors), f"exactly {name}")
    spreads = {
        key.removeprefix("mars.spread."): _get(keys, key, float)
        for key in keys
        if key.startswith("mars.spread.")
    }
    geometry = Geometry(
        safe=_get(keys, "mars.centroid.safe", np.ndarray),
        unsafe=_get(keys, "mars.centroid.unsafe", np.ndarray),
        readout=_get(keys, "mars.readout", np.ndarray),
        shifts={m: _get(keys, f"mars.shift.{m}", np.ndarray) for m in spreads},
        spreads=spreads,
        thresholds={m: _get(keys, f"mars.threshold.{m}", float) for m in spreads},
        gate_ramp=_get(keys, "mars.gate.ramp", float),
        trust_limit=_get(keys, "mars.trust.limit", float),
    )
    model = ModelFingerprint(
        **{
            key: _get(keys, f"mars.model.{key}", int if key.startswith("n_") else str)
            for key in ModelFingerprint.__dataclass_fields__
            if key != "reasoning" or f"mars.model.{key}" in keys
        }
    )
    vector = Vector(layer, geometry, model, _section(keys, "calibration"), _section(keys, "source"))
    vector.check()
    vector.require_plausible()
    tensor, direction = tensors[name], geometry.direction
    _expect(tensor.shape == (model.n_embd,), name, tensor.shape, f"[{model.n_embd}]")
    agrees = np.allclose(tensor, direction, rtol=1e-4, atol=1e-4 * np.abs(direction).max())
    _expect(agrees, name, "another direction", "mars.centroid.unsafe - mars.centroid.safe")
    return vector


def _section(keys: dict[str, Any], section: str) -> dict[str, Value]:
    prefix = f"mars.{section}."
    found: dict[str, Value] = {}
    for key, value in keys.items():
        if key.startswith(prefix):
            array = isinstance(value, np.ndarray)
            _expect(
                not array or len(value) <= MAX_LISTED,
                key,
                f"{len(value) if array else 1} values",
                f"at most {MAX_LISTED}",
            )
            found[key.removeprefix(prefix)] = value.tolist() if array else value
    return found


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
