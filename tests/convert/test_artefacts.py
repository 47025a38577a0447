"""Directions and centroids measured elsewhere: read, refused, completed on a model."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from commands import convert as main
from commands import few_prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DEMO

from mars_gguf.convert import GgufOptions, Prompts, convert
from mars_gguf.convert.artefacts import Artefact, is_artefact, read_artefact
from mars_gguf.convert.geometry import Centroids
from mars_gguf.errors import MarsError

N_LAYER, N_EMBD = 6, 8
rng = np.random.default_rng(3)
SAFE, UNSAFE = rng.normal(size=(2, N_LAYER, N_EMBD)).astype(np.float32)
ALL = {"centroid.safe": SAFE, "centroid.unsafe": UNSAFE}
ONE = {"layer": np.int64(2), "direction": (UNSAFE - SAFE)[2]}
FORMATS = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])


def save(path: Path, values: Any) -> Path:
    """Write ``values`` in the format that the suffix names."""
    if path.suffix == ".npz":
        np.savez(path, **values)
    else:
        safetensors = pytest.importorskip("safetensors.numpy")
        safetensors.save_file({k: np.asarray(v).copy() for k, v in values.items()}, path)
    return path


@FORMATS
def test_a_file_is_read_of_all_blocks_at_the_chosen_one_or_of_one(
    suffix: str, tmp_path: Path
) -> None:
    path = save(tmp_path / f"a{suffix}", ALL)
    assert is_artefact(path)
    found = read_artefact(path, 4)
    assert (found.layer, found.n_layer, found.path) == (4, N_LAYER, path)
    np.testing.assert_allclose(found.direction, UNSAFE[4] - SAFE[4], rtol=1e-5)
    assert found.centroids is not None
    np.testing.assert_array_equal(found.centroids, (SAFE[4], UNSAFE[4]))
    found.require_fits(N_LAYER, N_EMBD)
    found = read_artefact(save(tmp_path / f"b{suffix}", ONE))
    assert (found.layer, found.n_layer, found.centroids) == (2, None, None)
    np.testing.assert_array_equal(found.direction, ONE["direction"])


def but(**changes: Any) -> dict[str, Any]:
    values = ONE | {k.replace("_", "."): v for k, v in changes.items()}
    return {k: v for k, v in values.items() if v is not None}


@pytest.mark.parametrize(
    ("values", "layer", "message"),
    [
        (but(layer=None), None, "found 'layer' None and --layer None, expected one integer"),
        (but(), 3, "found 'layer' 2 and --layer 3"),
        (but(layer=np.float64(2)), None, "found 'layer' 2.0 .*expected one integer"),
        (but(direction=None), None, r"found \['layer'\], expected 'direction', or both"),
        (but(direction=None, centroid_safe=SAFE[2]), None, "expected 'direction', or both"),
        (but(**{k.replace(".", "_"): v[2] for k, v in ALL.items()}), None, "expected 'direction'"),
        (but(direction=np.full(N_EMBD, np.nan)), None, "expected finite numbers"),
        (but(direction=np.full(N_EMBD, np.inf)), None, "expected finite numbers"),
        (but(direction=np.array(["a"] * N_EMBD)), None, "expected finite numbers"),
        (but(direction=np.ones(8, complex)), None, "expected finite numbers"),
        (but(direction=np.zeros(N_EMBD)), None, "direction at block 2 is zero"),
        ({"layer": 2, "centroid.safe": SAFE[2], "centroid.unsafe": SAFE[2, 1:]}, None, "shapes"),
        (but(direction=np.ones((2, 3, 4))), None, "found shapes"),
        (but(direction=np.float32(1)), None, "found shapes"),
        (but(directoin=np.ones(3)), None, r"unknown names \['directoin'\], expected 'layer' and"),
        (ALL, 6, "found 6 blocks, but the layer is 6"),
        (ALL, -1, "found 6 blocks, but the layer is -1"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    values: dict[str, Any], layer: int | None, message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **values)
    with pytest.raises(MarsError, match=f"a.npz: cannot be read as an artefact: .*{message}"):
        read_artefact(tmp_path / "a.npz", layer)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_wants_to_run_code_does_not(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.npz", tmp_path / "ran"
    np.savez(path, direction=np.array([Runs(trace)], dtype=object))
    for _ in range(2):
        with pytest.raises(MarsError, match="cannot be read as"):
            read_artefact(path, 1)
        path.write_bytes(pickle.dumps(Runs(trace), protocol=2))
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
    "LZMA": (GOOD, {}, zipfile.ZIP_LZMA),
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
    with pytest.raises(MarsError, match="a.npz: cannot be read as an artefact"):
        read_artefact(tmp_path / "a.npz", 1)


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
    with pytest.raises(MarsError, match=r"not of 9 \(direction\.(9|10)\)"):
        read_artefact(path, 9)


def test_what_is_no_control_vector_is_no_artefact(tmp_path: Path) -> None:
    assert not is_artefact(Path(DEMO))
    assert not is_artefact(tmp_path / "missing.gguf")
    assert is_artefact(tmp_path / "missing.npz")
    path = control_vector(tmp_path / "v.gguf", {1: np.ones(4)}, generator=False)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MarsError, match=r"v\.gguf: cannot be read as an artefact: truncated"):
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
    artefact = Artefact(2, (-scale if flip else scale) * tilted)
    placed = artefact.place(MEASURED)
    r = placed.direction[2]
    cosine = r @ tilted / np.linalg.norm(r) / np.linalg.norm(tilted)
    assert abs(abs(cosine) - 1) < 1e-9
    assert r @ R > 0
    # Measured centroids, projected on the line, lie at its ends.
    assert r @ (MEASURED.unsafe[2] - placed.unsafe[2]) == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(placed.safe[2], MEASURED.safe[2])
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(placed.unsafe[others], MEASURED.unsafe[others])
    assert ("turned around" in artefact.note(MEASURED)) == (artefact.cosine(MEASURED) < 0)


def test_given_centroids_are_used_as_they_are() -> None:
    safe, unsafe = SAFE[2] + 0.1, UNSAFE[2] + 0.2
    placed = Artefact(2, unsafe - safe, (safe, unsafe)).place(MEASURED)
    np.testing.assert_array_equal((placed.safe[2], placed.unsafe[2]), (safe, unsafe))


def test_what_does_not_fit_the_model_is_refused() -> None:
    across = np.zeros(N_EMBD)
    across[0], across[1] = -R[1], R[0]
    with pytest.raises(MarsError, match=r"cosine -?0\.00 with the difference"):
        Artefact(2, across).place(MEASURED)
    with pytest.raises(MarsError, match="safe and unsafe mixed up"):
        Artefact(2, -R, (UNSAFE[2], SAFE[2])).place(MEASURED)
    for artefact, n_embd, found in (
        (Artefact(2, R), 9, "block 2 of 6, n_embd 8; expected one of 1 to 5 of 6, n_embd 9"),
        (Artefact(6, R), N_EMBD, "found block 6 of 6"),
        (Artefact(2, R, n_layer=N_LAYER + 1), N_EMBD, "found block 2 of 7"),
    ):
        with pytest.raises(MarsError, match=found):
            artefact.require_fits(N_LAYER, n_embd)


def test_a_vector_is_given_back_from_its_own_centroids_and_from_its_direction(
    tmp_path: Path,
) -> None:
    sets, options = Prompts(**few_prompts(tmp_path, 60)), GgufOptions(n_threads=1)
    measured = convert(DEMO, prompts=sets, options=options).vector
    g, layer = measured.geometry, measured.layer
    whole = save(
        tmp_path / "whole.npz",
        {"layer": layer, "centroid.safe": g.safe, "centroid.unsafe": g.unsafe},
    )
    turned = control_vector(
        tmp_path / "repeng.gguf", {layer: -3 * g.direction / g.distance}, generator=False
    )
    for path in (whole, turned):
        given_direction = read_artefact(path)
        made = convert(DEMO, prompts=sets, options=options, direction=given_direction)
        again = made.vector
        assert (again.layer, again.model) == (layer, measured.model)
        np.testing.assert_allclose(again.geometry.direction, g.direction, atol=1e-4 * g.distance)
        assert again.geometry.thresholds == pytest.approx(g.thresholds, abs=1e-3)
        assert again.geometry.trust_limit == g.trust_limit
        assert path.name in str(again.source["direction"])
        assert len(str(again.source["direction_sha256"])) == 64
        assert ("turned around" in made.warnings[0]) == (path is turned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "holds a direction, no model"),
        (["--model", DEMO], "found block 2 of 8, n_embd 8; expected one of 1 to 7 of 8, n_embd"),
    ],
)
def test_artefacts_that_cannot_be_used_end_the_command_with_a_message_and_no_file(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.npz", ONE)
    with pytest.raises(SystemExit) as ended:
        main([str(path), "-o", str(tmp_path / "v.gguf"), "-q", "-t", "1", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]
