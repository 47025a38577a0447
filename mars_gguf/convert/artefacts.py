"""Reads directions and centroids that were measured elsewhere.

docs/CONVERTING.md says what a file holds. Arrays of a ``.safetensors``, ``.npz`` or ``.pt`` file
have names (ARRAYS, "layer") and are of one block or of all; nothing in a ``.pt`` file is executed.
Of a GGUF control vector, repeng's direction.N is the output of block N, and that of llama.cpp's
cvector-generator of block N - 1; the type of ``controlvector.layer_count`` tells them apart, u32
and i32. ``layer`` here always counts blocks.

What an artefact does not say (centroids, how far along the direction they lie, spreads, gate,
trust limit) depends on the model and its quantization: it is measured on the model.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf.console import printable
from mars_gguf.convert.geometry import Array, Centroids
from mars_gguf.errors import MarsError
from mars_gguf.modalities import MEDIA
from mars_gguf.steering import coordinate, projection
from mars_gguf.vectors import MAX_FILE_BYTES, VectorError
from mars_gguf.vectors.gguf_file import MAX_ITEMS, GgufFile

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")
CENTROIDS = "centroid.safe", "centroid.unsafe"
ARRAYS = ("direction", *CENTROIDS, *(f"shift.{m}" for m in MEDIA))
MIN_COSINE = 0.1
DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
MAX_DIRECTIONS = 4096
INT32 = 5  # of GGUF's value types
MAX_MEMBERS = 64  # of an archive
MAX_PICKLE_BYTES = 1 << 20
FLAT = "BINUNICODE GLOBAL REDUCE".split()  # opcodes
MAX_SHOWN = 8


@dataclass(frozen=True)
class Artefact:
    """A direction that was measured elsewhere, of block ``layer``; arrays are float64 [n_embd].

    safe, unsafe: the centroids; None where the file has a direction only.
    shifts: by modality. n_layer: the number of blocks that the file tells of, None if it is one.
    origin: what to call it. path: the file that it was read from.
    """

    layer: int
    direction: Array
    safe: Array | None = None
    unsafe: Array | None = None
    shifts: Mapping[str, Array] = field(default_factory=dict)
    n_layer: int | None = None
    origin: str = "artefact"
    path: Path | None = None

    def require_fits(self, n_layer: int, n_embd: int) -> None:
        """Raises MarsError unless the artefact is of a model of this shape."""
        if self.n_layer not in (None, n_layer):
            hint = ": leave out row 0, the embeddings" if self.n_layer == n_layer + 1 else ""
            raise MarsError(
                f"{self.origin}: found {self.n_layer} blocks, expected the model's {n_layer}{hint}"
            )
        if len(self.direction) != n_embd:
            raise MarsError(
                f"{self.origin}: found arrays of {len(self.direction)} values, expected the "
                f"model's n_embd, {n_embd}. Was it measured on another model?"
            )
        if not 1 <= self.layer < n_layer:
            raise MarsError(f"{self.origin}: found block {self.layer}, expected 1 to {n_layer - 1}")

    def cosine(self, measured: Centroids) -> float:
        """The cosine of the direction with the one ``measured`` on the model at this block."""
        r = measured.direction[self.layer]
        return float(self.direction @ r / np.linalg.norm(self.direction) / np.linalg.norm(r))

    def place(self, measured: Centroids) -> Centroids:
        """Puts the artefact's centroids in place of those ``measured`` [L, d] at its block.

        A direction without centroids starts at the safe centroid (measured, if not given), is as
        long as the difference of the measured centroids is along it, and is turned around if it
        points from harmful to harmless. Raises MarsError for a direction that is not this
        model's refusal direction at all (cosine below MIN_COSINE).
        """
        safe, unsafe, cosine = self.safe, self.unsafe, self.cosine(measured)
        turned = (
            cosine < 0 and safe is not None and unsafe is not None
        )  # the centroids say the sign
        if abs(cosine) < MIN_COSINE or turned:
            raise MarsError(
                f"{self.origin}: at block {self.layer} its direction has cosine {cosine:.2f} with "
                "the difference between harmful and harmless prompts on this model, expected at "
                f"least {MIN_COSINE}. Another block, another model, or safe and unsafe mixed up?"
            )
        unit = self.direction / np.linalg.norm(self.direction)
        along = float(measured.direction[self.layer] @ unit) * unit
        if safe is None:
            safe = measured.safe[self.layer] if unsafe is None else unsafe - along
        if unsafe is None:
            unsafe = safe + along
        placed = Centroids(measured.safe.copy(), measured.unsafe.copy())
        placed.safe[self.layer], placed.unsafe[self.layer] = safe, unsafe
        return placed

    def notes(self, measured: Centroids) -> list[str]:
        """Says how the artefact and the model agree, in sentences for the user."""
        cosine = self.cosine(measured)
        found = [
            f"The direction is not measured here: {self.origin}. Its cosine with the one that "
            f"this conversion measured at block {self.layer} is {abs(cosine):.2f}."
        ]
        if cosine < 0:
            found.append("It pointed from harmful to harmless and was turned around.")
        placed = self.place(measured)
        safe, unsafe = placed.safe[self.layer], placed.unsafe[self.layer]
        t = float(coordinate(measured.safe[self.layer], safe, projection(unsafe - safe)))
        if abs(t) > 0.5:
            found.append(
                f"Harmless prompts of this conversion lie at t = {t:.2f}, not at the given safe "
                "centroid (0): other prompts, another chat template, or another block."
            )
        return found


def is_artefact(path: Path) -> bool:
    """Tells whether this module reads the file: by its suffix, or as a GGUF control vector."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        return False
    with path.open("rb") as file:
        # Writers put general.architecture first; its value lies in the first bytes.
        return file.read(4) == b"GGUF" and b"controlvector" in file.read(200)


def read_artefact(path: str | PathLike[str], layer: int | None = None) -> Artefact:
    """Reads and checks an artefact; ``layer`` (--layer) is the block, if the file does not say.

    Raises MarsError naming what is missing or wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise MarsError(f"{path}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise MarsError(
            f"{path}: {path.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}: an artefact "
            "holds directions or centroids. Is it the model?"
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return _control_vector(path, layer)
    loader = {".safetensors": _load_safetensors, ".npz": _load_npz}.get(suffix, _load_pt)
    return _artefact(path, loader(path), layer)


def _require_known(path: Path, names: Collection[str]) -> None:
    """Raises MarsError for names that no artefact has, before anything is read under them."""
    unknown = sorted(set(names) - {*ARRAYS, "layer"})
    if unknown:
        raise MarsError(
            f"{path}: unknown names {', '.join(map(repr, unknown[:MAX_SHOWN]))}, expected 'layer' "
            f"and some of {', '.join(map(repr, ARRAYS))}"
        )


def _artefact(path: Path, values: Mapping[str, Any], layer: int | None) -> Artefact:
    missing = [name for name in CENTROIDS if name not in values]
    if "direction" not in values and missing:
        raise MarsError(
            f"{path}: {' and '.join(map(repr, missing))} missing; expected 'direction', or both "
            f"{' and '.join(map(repr, CENTROIDS))}"
        )
    layer = _layer(path, values.get("layer"), layer)
    arrays = {name: _numbers(path, name, values[name]) for name in ARRAYS if name in values}
    shapes = {name: array.shape for name, array in arrays.items()}
    shape, *others = set(shapes.values())
    if others or len(shape) not in (1, 2):
        raise MarsError(
            f"{path}: found shapes {shapes}, expected all [n_embd] or all [n_layer, n_embd]"
        )
    if shape[-1] > MAX_ITEMS:
        raise MarsError(
            f"{path}: found arrays of {shape[-1]} values, expected the model's n_embd, at most "
            f"{MAX_ITEMS}"
        )
    n_layer = None
    if len(shape) == 2:
        n_layer = shape[0]
        if not 0 <= layer < n_layer:
            raise MarsError(f"{path}: found {n_layer} blocks, but the layer is {layer}")
        arrays = {name: array[layer] for name, array in arrays.items()}
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    direction, safe, unsafe = (arrays.get(name) for name in ARRAYS[:3])
    if safe is not None and unsafe is not None:
        difference = unsafe - safe
        if direction is not None and not _parallel(direction, difference):
            raise MarsError(
                f"{path}: 'direction' does not point from 'centroid.safe' to 'centroid.unsafe'. "
                "Leave one of them out."
            )
        direction = difference
    assert direction is not None
    if not direction.any():
        raise MarsError(f"{path}: the direction at block {layer} is zero")
    shifts = {m: arrays[f"shift.{m}"] for m in MEDIA if f"shift.{m}" in arrays}
    return Artefact(layer, direction, safe, unsafe, shifts, n_layer, printable(path.name), path)


def _layer(path: Path, found: Any, wanted: int | None) -> int:
    if found is None:
        if wanted is None:
            raise MarsError(f"{path}: 'layer' missing; say of which block this is with --layer")
        return wanted
    array = np.asarray(found)
    if array.size != 1 or not np.issubdtype(array.dtype, np.integer):
        raise MarsError(f"{path}: 'layer' is {found!r:.60}, expected one integer")
    layer = int(array.item())
    if wanted not in (None, layer):
        raise MarsError(f"{path}: found 'layer' {layer}, but --layer {wanted}. Leave out --layer.")
    return layer


def _numbers(path: Path, name: str, value: Any) -> Array:
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise MarsError(f"{path}: {name!r} has type {array.dtype}, expected numbers")
    if not np.isfinite(array).all():
        raise MarsError(f"{path}: {name!r} has NaN or infinite values, expected finite ones")
    return array


def _parallel(a: Array, b: Array) -> bool:
    return float(a @ b) > 0.999 * float(np.linalg.norm(a) * np.linalg.norm(b))


# Formats -----------------------------------------------------------------------------------------
# What their readers raise over a damaged or hostile file is not documented, and of all kinds.


@contextmanager
def _told(path: Path, advice: str) -> Iterator[None]:
    """Turns whatever a reader of this file raises into a MarsError that ends in ``advice``."""
    try:
        yield
    except MarsError:
        raise
    except Exception as error:
        reason = f"{(str(error).splitlines() or [type(error).__name__])[0]:.200}"
        raise MarsError(f"{path}: cannot be read as {advice.format(reason)}") from error


def _library(path: Path, name: str) -> Any:
    """Imports a library that reads such files. Raises MarsError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MarsError(
            f"{path}: reading {path.suffix} needs {name} ({error}): "
            "pip install 'mars-gguf[convert]'"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _library(path, "safetensors")
    with (
        _told(path, "safetensors ({}); save float32 arrays"),
        safetensors.safe_open(path, framework="np") as file,
    ):
        names = list(file.keys())
        _require_known(path, names)
        return {name: file.get_tensor(name) for name in names}


def _members(path: Path) -> dict[str, bytes]:
    """Unpacks a zip archive. Raises MarsError for more than an artefact holds."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > MAX_FILE_BYTES or len(members) > MAX_MEMBERS:
            raise MarsError(
                f"{path}: unpacks to {size} bytes in {len(members)} files, expected at most "
                f"{MAX_FILE_BYTES} in {MAX_MEMBERS}"
            )
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"a compression of type {member.compress_type}")
        # No more of each, where more is in it than it says.
        return {m.filename: archive.open(m).read(m.file_size) for m in members}


def _load_npz(path: Path) -> dict[str, Any]:
    advice = "without running a pickle in it ({}); save plain arrays with numpy.savez"
    with _told(path, f".npz {advice}"):
        members = {name.removesuffix(".npy"): data for name, data in _members(path).items()}
        _require_known(path, members)
        return {
            name: np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
            for name, data in members.items()
        }


def _load_pt(path: Path) -> dict[str, Any]:
    torch = _library(path, "torch")

    def array(value: Any) -> Array:
        if type(value) is int:
            return np.asarray(value)
        if not torch.is_tensor(value):
            raise ValueError(f"found {type(value).__name__}, expected a tensor")
        if value.numel() > MAX_FILE_BYTES // 8:  # an expanded tensor takes no space in the file
            raise ValueError(f"a tensor of {value.numel()} values")
        return np.asarray((value.double() if value.is_floating_point() else value).detach())

    advice = (
        "tensors alone (weights_only: nothing in the file is executed): {}. Save a dict of plain "
        "tensors with torch.save."
    )
    with _told(path, advice):
        content = torch.load(_repacked(_members(path)), map_location="cpu", weights_only=True)
        if torch.is_tensor(content):
            content = {"direction": content}
        if not isinstance(content, dict):
            raise MarsError(f"{path}: found {type(content).__name__}, expected a dict of tensors")
        _require_known(path, [str(name) for name in content])
        return {str(name): array(value) for name, value in content.items()}


def _repacked(members: Mapping[str, bytes]) -> io.BytesIO:
    """Packs the archive anew, so that torch reads what was looked at. Raises ValueError."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            if name.endswith(".pkl"):
                _require_flat(data)
            archive.writestr(name, data)
    packed.seek(0)
    return packed


def _require_flat(pickled: bytes) -> None:
    """Raises ValueError for a pickle that refers back to anything but text, names and tensors, as
    torch.save writes it. A tuple that holds one tuple twice, which holds one twice, and so on, is
    soon written and never hashed."""
    if len(pickled) > MAX_PICKLE_BYTES:
        raise ValueError(f"a pickle of {len(pickled)} bytes")
    flat: set[Any] = set()
    last = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        if "PUT" in opcode.name:
            (flat.add if last in FLAT else flat.discard)(argument)
            continue
        if "GET" in opcode.name and argument not in flat:
            raise ValueError("a pickle of one thing in many places")
        last = opcode.name


def _control_vector(path: Path, layer: int | None) -> Artefact:
    try:
        file = GgufFile(path.read_bytes(), MAX_DIRECTIONS)
    except (VectorError, OSError) as error:
        raise MarsError(f"{path}: damaged, or no control vector ({error})") from error
    if "mars.version" in file.keys:
        raise MarsError(f"{path}: this is a vector of mars_gguf already. Give it with --vector.")
    named = {DIRECTION.fullmatch(name): array for name, array in file.tensors.items()}
    directions = {int(name[1]): array for name, array in named.items() if name}
    if not directions:
        raise MarsError(f"{path}: no tensor direction.N of type F32, expected one a layer")
    from_generator = file.types.get("controlvector.layer_count") == INT32
    tool, offset = ("cvector-generator", 1) if from_generator else ("repeng", 0)
    blocks = sorted(n - offset for n in directions)
    if layer is None:
        if len(blocks) > 1:
            raise MarsError(
                f"{path}: found directions of blocks {blocks[0]} to {blocks[-1]}; choose one with "
                "--layer"
            )
        layer = blocks[0]
    if layer not in blocks:
        raise MarsError(
            f"{path}: no direction of block {layer} (direction.{layer + offset} of {tool}), found "
            f"blocks {blocks[0]} to {blocks[-1]}"
        )
    name = f"direction.{layer + offset}"
    direction = _numbers(path, name, directions[layer + offset]).astype(np.float64)
    if not direction.any():
        raise MarsError(f"{path}: {name} is zero")
    return Artefact(layer, direction, origin=f"{printable(path.name)} ({tool}, {name})", path=path)
