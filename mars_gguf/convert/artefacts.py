"""Reads directions and centroids that were measured elsewhere.

docs/CONVERTING.md says what a file holds. Of a GGUF control vector, repeng's direction.N is the
output of block N, and that of llama.cpp's cvector-generator of block N - 1; the type of
``controlvector.layer_count`` tells them apart, u32 and i32. ``layer`` here always counts blocks.
What an artefact does not say (spreads, gate, trust limit, mostly centroids) is measured.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from mars_gguf.console import printable
from mars_gguf.convert.geometry import Array, Centroids
from mars_gguf.errors import MarsError
from mars_gguf.vectors import MAX_FILE_BYTES
from mars_gguf.vectors.gguf_file import MAX_ITEMS, GgufFile

SUFFIXES = (".safetensors", ".npz")
CENTROIDS = "centroid.safe", "centroid.unsafe"
ARRAYS = ("direction", *CENTROIDS)
MIN_COSINE = 0.1
DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,5})")
MAX_DIRECTIONS = 4096
INT32 = 5  # of GGUF's value types
MAX_MEMBERS = 64  # of an archive


@dataclass(frozen=True)
class Artefact:
    """A direction that was measured elsewhere, of block ``layer``; arrays are float64 [n_embd].

    centroids: the safe and the unsafe one; None where the file has a direction only.
    n_layer: the number of blocks that the file tells of, None if it is one.
    origin: what to call it. path: the file that it was read from.
    """

    layer: int
    direction: Array
    centroids: tuple[Array, Array] | None = None
    n_layer: int | None = None
    origin: str = "artefact"
    path: Path | None = None

    def require_fits(self, n_layer: int, n_embd: int) -> None:
        """Raises MarsError unless the artefact is of a model of this shape."""
        found = self.n_layer or n_layer, len(self.direction)
        if found != (n_layer, n_embd) or not 1 <= self.layer < n_layer:
            raise MarsError(
                f"{self.origin}: found block {self.layer} of {found[0]}, n_embd {found[1]}; "
                f"expected one of 1 to {n_layer - 1} of {n_layer}, n_embd {n_embd}. Was it "
                "measured on another model, or is row 0 the embeddings?"
            )

    def cosine(self, measured: Centroids) -> float:
        """The cosine of the direction with the one ``measured`` on the model at this block."""
        r = measured.direction[self.layer]
        return float(self.direction @ r / np.linalg.norm(self.direction) / np.linalg.norm(r))

    def place(self, measured: Centroids) -> Centroids:
        """Puts the artefact's centroids in place of those ``measured`` [L, d] at its block.

        A direction without centroids starts at the measured safe one, is as long as the difference
        of the measured ones is along it, and is turned around if it points from harmful to
        harmless. Raises MarsError for a direction that is not this model's refusal direction at
        all (cosine below MIN_COSINE).
        """
        cosine = self.cosine(measured)
        if (cosine if self.centroids else abs(cosine)) < MIN_COSINE:
            raise MarsError(
                f"{self.origin}: at block {self.layer} its direction has cosine {cosine:.2f} with "
                "the difference between harmful and harmless prompts on this model, expected at "
                f"least {MIN_COSINE}. Another block, another model, or safe and unsafe mixed up?"
            )
        unit = self.direction / np.linalg.norm(self.direction)
        safe = measured.safe[self.layer]
        ends = safe, safe + (measured.direction[self.layer] @ unit) * unit
        placed = Centroids(measured.safe.copy(), measured.unsafe.copy())
        placed.safe[self.layer], placed.unsafe[self.layer] = self.centroids or ends
        return placed

    def note(self, measured: Centroids) -> str:
        """Says how the artefact and the model agree, for the user."""
        cosine = self.cosine(measured)
        turned = " It pointed from harmful to harmless and was turned around." * (cosine < 0)
        return (
            f"The direction is not measured here: {self.origin}. Its cosine with the one that "
            f"this conversion measured at block {self.layer} is {abs(cosine):.2f}.{turned}"
        )


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
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise MarsError(f"{path}: {size} bytes, expected at most {MAX_FILE_BYTES}. Is it a model?")
    origin = printable(path.name)
    try:
        match path.suffix.lower():
            case ".npz":
                values = _npz(path)
            case ".safetensors":
                values = _safetensors(path)
            case _:
                values, origin = _control_vector(path, layer)
        return _artefact(values, layer, origin, path)
    except Exception as error:  # what readers raise over a damaged or hostile file is of all kinds
        reason = f"{(str(error).splitlines() or [type(error).__name__])[0]:.400}"
        hint = ": pip install 'mars-gguf[convert]'" if isinstance(error, ImportError) else ""
        raise MarsError(f"{path}: cannot be read as an artefact: {reason}{hint}") from error


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in _known(file.keys())}


def _npz(path: Path) -> dict[str, Any]:
    """Reads no more of an archive than an artefact holds, and no pickle in it."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if size > MAX_FILE_BYTES or len(members) > MAX_MEMBERS:
            raise ValueError(f"unpacks to {size} bytes in {len(members)} files")
        if {m.compress_type for m in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("another compression than deflate")
        # No more of each, where more is in it than it says.
        files = {
            m.filename.removesuffix(".npy"): archive.open(m).read(m.file_size) for m in members
        }
    read = np.lib.format.read_array
    return {n: read(io.BytesIO(files[n]), allow_pickle=False) for n in _known(files)}


def _known(names: Iterable[str]) -> list[str]:
    """Returns the names. Raises ValueError for some that no artefact has, before anything is read
    under them."""
    found = list(names)
    if unknown := sorted(set(found) - {*ARRAYS, "layer"})[:8]:
        raise ValueError(f"unknown names {unknown}, expected 'layer' and some of {[*ARRAYS]}")
    return found


def _control_vector(path: Path, layer: int | None) -> tuple[dict[str, Any], str]:
    file = GgufFile(path.read_bytes(), MAX_DIRECTIONS)
    if "mars.version" in file.keys:
        raise ValueError("this is a vector of mars_gguf already. Give it with --vector.")
    numbered = {DIRECTION.fullmatch(name): array for name, array in file.tensors.items()}
    tool, offset = "repeng", 0
    if file.types.get("controlvector.layer_count") == INT32:
        tool, offset = "cvector-generator", 1
    directions = {int(name[1]) - offset: array for name, array in numbered.items() if name}
    if layer is None and len(directions) == 1:
        layer = next(iter(directions))
    if layer not in directions:
        blocks = f"{min(directions)} to {max(directions)}" if directions else "none"
        wanted = "" if layer is None else f", not of {layer} (direction.{layer + offset})"
        raise ValueError(
            f"found directions of blocks {blocks} of {tool}{wanted}; choose one with --layer"
        )
    origin = f"{printable(path.name)} ({tool}, direction.{layer + offset})"
    return {"layer": layer, "direction": directions[layer]}, origin


def _artefact(values: Mapping[str, Any], wanted: int | None, origin: str, path: Path) -> Artefact:
    """Checks what a file holds. Raises ValueError."""
    both = [name for name in CENTROIDS if name in values]
    if ("direction" in values) == (len(both) == 2) or len(both) == 1:
        raise ValueError(f"found {sorted(values)}, expected 'direction', or both {CENTROIDS}")
    found = np.asarray(values.get("layer", wanted))
    if found.size != 1 or found.dtype.kind not in "iu" or wanted not in (None, found.item()):
        raise ValueError(f"found 'layer' {found} and --layer {wanted}, expected one integer")
    layer = int(found.item())
    arrays = {name: np.asarray(values[name]) for name in ARRAYS if name in values}
    shape, *others = {array.shape for array in arrays.values()}
    if others or len(shape) not in (1, 2) or shape[-1] > MAX_ITEMS:
        raise ValueError(
            f"found shapes {[shape, *others]}, expected all [n_embd] or all [n_layer, n_embd], "
            f"n_embd at most {MAX_ITEMS}"
        )
    numbers = all(array.dtype.kind in "biuf" for array in arrays.values())
    if not numbers or not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("found NaN, infinite values or no numbers, expected finite numbers")
    n_layer = shape[0] if len(shape) == 2 else None
    if n_layer is not None and not 0 <= layer < n_layer:
        raise ValueError(f"found {n_layer} blocks, but the layer is {layer}")
    rows = [a if n_layer is None else a[layer] for a in arrays.values()]  # in the order of ARRAYS
    first, *second = (np.asarray(row, np.float64) for row in rows)
    centroids = (first, second[0]) if second else None
    direction = second[0] - first if second else first
    if not direction.any():
        raise ValueError(f"the direction at block {layer} is zero")
    return Artefact(layer, direction, centroids, n_layer, origin, path)
