"""Directions and centroids measured elsewhere: read, refused, completed on a model."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from commands import convert as main
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DEMO

from mars_gguf.convert.artefacts import Artefact, is_artefact, read_artefact
from mars_gguf.convert.geometry import Centroids
from mars_gguf.convert.prompts import builtin_contrast
from mars_gguf.errors import MarsError
from mars_gguf.vectors import Vector, read_vector

N_LAYER, N_EMBD = 6, 8
rng = np.random.default_rng(3)
SAFE, UNSAFE = rng.normal(size=(2, N_LAYER, N_EMBD)).astype(np.float32)
ALL = {"centroid.safe": SAFE, "centroid.unsafe": UNSAFE}
ONE = {"layer": np.int64(2), "direction": (UNSAFE - SAFE)[2]}


def save(path: Path, values: Any) -> Path:
    """Write ``values`` in the format that the suffix names."""
    if path.suffix == ".npz":
        np.savez(path, **values)
    elif path.suffix == ".safetensors":
        safetensors = pytest.importorskip("safetensors.numpy")
        safetensors.save_file({k: np.asarray(v).copy() for k, v in values.items()}, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save(
            {k: torch.as_tensor(np.asarray(v)) for k, v in values.items()}
            if isinstance(values, dict)
            else torch.as_tensor(values),
            path,
        )
    return path


FORMATS = pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])


@FORMATS
def test_centroids_of_all_blocks_are_read_at_the_chosen_one(suffix: str, tmp_path: Path) -> None:
    shift = rng.normal(size=(N_LAYER, N_EMBD)).astype(np.float32)
    path = save(tmp_path / f"a{suffix}", ALL | {"shift.image": shift})
    assert is_artefact(path)
    found = read_artefact(path, 4)
    assert found.layer == 4
    assert found.n_layer == N_LAYER
    np.testing.assert_allclose(found.direction, UNSAFE[4] - SAFE[4], rtol=1e-5)
    np.testing.assert_array_equal(found.shifts["image"], shift[4])
    found.require_fits(N_LAYER, N_EMBD)


@FORMATS
def test_a_direction_of_one_block_brings_its_layer(suffix: str, tmp_path: Path) -> None:
    found = read_artefact(save(tmp_path / f"a{suffix}", ONE))
    assert (found.layer, found.n_layer, found.safe, found.unsafe) == (2, None, None, None)
    np.testing.assert_array_equal(found.direction, ONE["direction"])


def test_a_bare_tensor_is_a_direction(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "direction.pt"
    torch.save(torch.ones(N_EMBD, dtype=torch.bfloat16), path)
    np.testing.assert_array_equal(read_artefact(path, 3).direction, np.ones(N_EMBD))


def but(**changes: Any) -> dict[str, Any]:
    values = ONE | {k.replace("_", "."): v for k, v in changes.items()}
    return {k: v for k, v in values.items() if v is not None}


@pytest.mark.parametrize(
    ("values", "layer", "message"),
    [
        (but(layer=None), None, "'layer' missing; say of which block this is with --layer"),
        (but(), 3, "found 'layer' 2, but --layer 3"),
        (but(layer=np.float64(2)), None, "'layer' is .*expected one integer"),
        (but(direction=None), None, "'centroid.safe' and 'centroid.unsafe' missing"),
        (but(direction=None, centroid_safe=SAFE[2]), None, ": 'centroid.unsafe' missing"),
        (but(direction=np.full(N_EMBD, np.nan)), None, "'direction' has NaN or infinite"),
        (but(direction=np.full(N_EMBD, np.inf)), None, "'direction' has NaN or infinite"),
        (but(direction=np.zeros(N_EMBD)), None, "direction at block 2 is zero"),
        (but(direction=np.ones(3), shift_image=np.ones(4)), None, "found shapes"),
        (but(direction=np.ones((2, 3, 4))), None, "found shapes"),
        (but(direction=np.float32(1)), None, "found shapes"),
        (but(direction=np.array(["a"] * N_EMBD)), None, "expected numbers"),
        (but(directoin=np.ones(3)), None, "unknown names 'directoin', expected 'layer' and"),
        (ALL, 6, "found 6 blocks, but the layer is 6"),
        (ALL, -1, "found 6 blocks, but the layer is -1"),
        (
            but(centroid_safe=SAFE[2], centroid_unsafe=UNSAFE[2], direction=SAFE[2] - UNSAFE[2]),
            None,
            "'direction' does not point from 'centroid.safe' to 'centroid.unsafe'",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    values: dict[str, Any], layer: int | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **values)
    with pytest.raises(MarsError, match=message):
        read_artefact(path, layer)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_pickle_that_wants_to_run_code_does_not(suffix: str, tmp_path: Path) -> None:
    path, trace = tmp_path / f"evil{suffix}", tmp_path / "ran"
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        torch.save({"direction": Runs(trace)}, path)
    else:
        np.savez(path, direction=np.array([Runs(trace)], dtype=object))
    with pytest.raises(MarsError, match="cannot be read as"):
        read_artefact(path, 1)
    path.write_bytes(pickle.dumps(Runs(trace), protocol=2))
    with pytest.raises(MarsError, match="cannot be read as"):
        read_artefact(path, 1)
    assert not trace.exists()


def npy(shape: str, data: bytes = b"", end: str = "\n") -> bytes:
    """An .npy file whose header is not checked."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}{end}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(
    path: Path, content: bytes, damage: dict[int, int], method: int = zipfile.ZIP_STORED
) -> None:
    """An .npz of one array with some bytes of its last zip entry's headers and data replaced."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("direction.npy", content)
    raw = bytearray(path.read_bytes())
    for offset, value in damage.items():
        raw[offset if offset >= 0 else raw.index(b"PK\x01\x02") - offset] = value
    path.write_bytes(raw)


GOOD = npy("(8,)", np.ones(8, "<f4").tobytes())
DATA = 30 + len("direction.npy")  # where the entry's data begin; negative: in the directory
HOSTILE_NPZ: dict[str, tuple[Any, ...]] = {
    "encrypted": (GOOD, {6: 1, -8: 1}),
    "unknown compression": (GOOD, {8: 77, -10: 77}),
    "corrupt deflate": (GOOD, {DATA + 5: 255, DATA + 6: 255}, zipfile.ZIP_DEFLATED),
    "corrupt LZMA": (GOOD, {DATA + i: 255 for i in range(4, 12)}, zipfile.ZIP_LZMA),
    "corrupt bzip2": (GOOD, {DATA + i: 255 for i in range(4, 12)}, zipfile.ZIP_BZIP2),
    "more values than memory": (npy(f"({2**50},)"), {}),
    "more values than an index": (npy(f"({2**80},)"), {}),
    "a negative shape": (npy("(-8,)"), {}),
    "a broken header": (npy("(8,", end=""), {}),
    "a deep header": (npy("(" * 900), {}),
}


@pytest.mark.parametrize("hostile", HOSTILE_NPZ.values(), ids=HOSTILE_NPZ)
def test_hostile_npz_files_are_refused(hostile: tuple[Any, ...], tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", GOOD, {})
    assert read_artefact(tmp_path / "a.npz", 1).direction.tolist() == [1] * 8
    npz(tmp_path / "a.npz", *hostile)
    with pytest.raises(MarsError, match="a.npz: cannot be read as .npz"):
        read_artefact(tmp_path / "a.npz", 1)


HOSTILE_PT: dict[str, Callable[[Any], Any]] = {
    "a ragged list": lambda torch: [[1.0], [1.0, 2.0]],
    "sparse": lambda torch: torch.ones(8).to_sparse(),
    "without data": lambda torch: torch.ones(8, device="meta"),
    "conjugated": lambda torch: torch.ones(8, dtype=torch.complex64).conj(),
    "larger than the file": lambda torch: torch.ones(1).expand(1 << 40),
}


@pytest.mark.parametrize("make", HOSTILE_PT.values(), ids=HOSTILE_PT)
def test_tensors_that_are_no_plain_arrays_are_refused(
    make: Callable[[Any], Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"direction": make(torch)}, tmp_path / "a.pt")
    with pytest.raises(MarsError, match="a.pt: cannot be read as tensors alone"):
        read_artefact(tmp_path / "a.pt", 1)


@FORMATS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_with_a_message(
    suffix: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = save(tmp_path_factory.mktemp("damaged") / f"a{suffix}", ONE)
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[:cut])
    with contextlib.suppress(MarsError):  # and nothing else
        assert np.isfinite(read_artefact(path).direction).all()


# Control vectors of other tools ------------------------------------------------------------------


def control_vector(path: Path, directions: dict[int, Any], *, generator: bool) -> Path:
    """As repeng or, with ``generator``, llama.cpp's cvector-generator writes them."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    add = writer.add_int32 if generator else writer.add_uint32
    add("controlvector.layer_count", len(directions))
    for n, direction in directions.items():
        writer.add_tensor(f"direction.{n}", np.asarray(direction, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("generator", [False, True])
def test_the_two_tools_number_layers_differently(generator: bool, tmp_path: Path) -> None:
    """Block b is direction.b of repeng, direction.(b + 1) of cvector-generator."""
    outputs = (UNSAFE - SAFE).astype(np.float32)
    numbered = {n: outputs[n - generator] for n in range(1, N_LAYER)}
    path = control_vector(tmp_path / "v.gguf", numbered, generator=generator)
    assert is_artefact(path)
    for block in range(1, N_LAYER - 1):
        found = read_artefact(path, block)
        np.testing.assert_array_equal(found.direction, outputs[block])
        assert f"direction.{block + generator}" in found.origin
    with pytest.raises(MarsError, match="choose one with --layer"):
        read_artefact(path)
    with pytest.raises(MarsError, match=r"no direction of block 9 \(direction\.(9|10) of"):
        read_artefact(path, 9)


def test_what_is_no_control_vector_is_no_artefact(tmp_path: Path) -> None:
    assert not is_artefact(Path(DEMO))
    assert not is_artefact(tmp_path / "missing.gguf")
    assert is_artefact(tmp_path / "missing.npz")
    path = control_vector(tmp_path / "v.gguf", {1: np.ones(4)}, generator=False)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MarsError, match="damaged, or no control vector"):
        read_artefact(path, 1)


# On a model --------------------------------------------------------------------------------------

MEASURED = Centroids(SAFE.astype(np.float64), UNSAFE.astype(np.float64))
R = MEASURED.direction[2]


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(1e-3, 1e3), flip=st.booleans(), seed=st.integers(0, 99))
def test_a_direction_keeps_its_line_and_gets_length_and_sign_from_the_model(
    scale: float, flip: bool, seed: int
) -> None:
    tilted = R + 0.5 * np.linalg.norm(R) * np.random.default_rng(seed).normal(size=N_EMBD) / 3
    given_direction = (-scale if flip else scale) * tilted
    artefact = Artefact(2, given_direction)
    placed = artefact.place(MEASURED)
    r = placed.direction[2]
    cosine = r @ tilted / np.linalg.norm(r) / np.linalg.norm(tilted)
    assert abs(abs(cosine) - 1) < 1e-9
    assert r @ R > 0
    # Measured centroids, projected on the line, lie at its ends.
    assert r @ (MEASURED.unsafe[2] - placed.unsafe[2]) == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(placed.safe[2], MEASURED.safe[2])
    for block in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(placed.unsafe[block], MEASURED.unsafe[block])
    turned = any("turned around" in note for note in artefact.notes(MEASURED))
    assert turned == (artefact.cosine(MEASURED) < 0)


def test_given_centroids_are_used_as_they_are() -> None:
    safe, unsafe = SAFE[2] + 0.1, UNSAFE[2] + 0.2
    placed = Artefact(2, unsafe - safe, safe, unsafe).place(MEASURED)
    np.testing.assert_array_equal(placed.safe[2], safe)
    np.testing.assert_array_equal(placed.unsafe[2], unsafe)


def test_what_does_not_fit_the_model_is_refused() -> None:
    across = np.zeros(N_EMBD)
    across[0], across[1] = -R[1], R[0]
    with pytest.raises(MarsError, match=r"cosine -?0\.00 with the difference"):
        Artefact(2, across).place(MEASURED)
    with pytest.raises(MarsError, match="safe and unsafe mixed up"):
        Artefact(2, -R, UNSAFE[2], SAFE[2]).place(MEASURED)
    with pytest.raises(MarsError, match="found arrays of 8 values, expected the model's n_embd, 9"):
        Artefact(2, R).require_fits(N_LAYER, 9)
    with pytest.raises(MarsError, match="found block 6, expected 1 to 5"):
        Artefact(6, R).require_fits(N_LAYER, N_EMBD)
    with pytest.raises(MarsError, match="leave out row 0, the embeddings"):
        Artefact(2, R, n_layer=N_LAYER + 1).require_fits(N_LAYER, N_EMBD)


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    pairs = builtin_contrast()
    for name, prompts in (("harmful", pairs.harmful), ("harmless", pairs.harmless)):
        (tmp_path / name).write_text("\n".join(prompts[:60]), encoding="utf-8")
    return ["--harmful", str(tmp_path / "harmful"), "--harmless", str(tmp_path / "harmless")]


@pytest.fixture
def measured(tmp_path: Path, sets: list[str]) -> Vector:
    main([DEMO, "-o", str(tmp_path / "own.gguf"), "-q", "--no-plot", "-t", "1", *sets])
    return read_vector(tmp_path / "own.gguf")


def test_the_command_gives_back_a_vector_from_its_own_centroids_or_its_direction(
    measured: Vector, sets: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g, layer = measured.geometry, measured.layer
    options = ["--model", DEMO, "-q", "--no-plot", "-t", "1", *sets]
    whole = save(
        tmp_path / "whole.npz",
        {"layer": layer, "centroid.safe": g.safe, "centroid.unsafe": g.unsafe},
    )
    imported = control_vector(
        tmp_path / "repeng.gguf", {layer: -3 * g.direction / g.distance}, generator=False
    )
    for path, *more in ((whole,), (imported, "--layer", str(layer))):
        output = tmp_path / f"from-{path.stem}.gguf"
        main([str(path), "-o", str(output), *more, *options])
        again = read_vector(output)
        assert again.layer == layer
        assert again.model == measured.model
        np.testing.assert_allclose(again.geometry.direction, g.direction, atol=1e-4 * g.distance)
        assert again.geometry.thresholds == pytest.approx(g.thresholds, abs=1e-3)
        assert again.geometry.trust_limit == g.trust_limit
        assert path.name in again.source["direction"]
        assert "Its cosine with the one" in output.with_suffix(".md").read_text()
    assert "turned around" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (ONE, [], "holds a direction, no model"),
        (ONE, ["--model", DEMO], "found arrays of 8 values"),
        (ONE, ["--model", DEMO, "--layers", "1-2"], "there is no choice"),
        (ONE, ["--model", "missing.gguf"], "missing.gguf: no such file"),
        ({"layer": 2}, ["--model", DEMO], "'centroid.safe' and 'centroid.unsafe' missing"),
        (
            {"layer": 2, "direction": np.ones(256), "shift.image": np.ones(256)},
            ["--model", DEMO],
            "has a shift of image, but without neutral pictures",
        ),
    ],
)  # fmt: skip
def test_artefacts_that_cannot_be_used_end_with_a_message_and_no_file(
    values: dict[str, Any], options: list[str], message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = save(tmp_path / "a.npz", values)
    with pytest.raises(SystemExit) as ended:
        main([str(path), "-o", str(tmp_path / "v.gguf"), "-q", "-t", "1", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
