from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vector_files import GEOMETRY, MODEL, SAFE, UNSAFE, VECTOR, gguf_file

from mars_gguf import demo_model
from mars_gguf.errors import VectorError
from mars_gguf.steering import Geometry, projection
from mars_gguf.vectors import ModelFingerprint, Vector, read_vector, write_vector
from mars_gguf.vectors.gguf_file import MAX_KEYS, MAX_STRING_BYTES


def same(one: Vector, other: Vector) -> bool:
    a, b = one.geometry, other.geometry
    arrays = [(a.safe, b.safe), (a.unsafe, b.unsafe), (a.readout, b.readout)]
    arrays += [(a.shifts[m], b.shifts[m]) for m in a.shifts]
    return (
        (one.layer, one.model) == (other.layer, other.model)
        and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in arrays)
        and (a.shifts.keys(), a.spreads, a.thresholds) == (b.shifts.keys(), b.spreads, b.thresholds)
        and (a.gate_ramp, a.trust_limit) == (b.gate_ramp, b.trust_limit)
        and dict(one.calibration) == dict(other.calibration)
        and dict(one.source) == dict(other.source)
    )


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
plausible = st.floats(0.0625, 8, width=32)
values = st.one_of(
    st.booleans(), st.integers(0, 2**32 - 1), numbers, st.text(),
    *(
        st.lists(item, min_size=1, max_size=4)
        for item in (st.booleans(), st.integers(-(2**31), 2**31 - 1), numbers, st.text())
    ),
)  # fmt: skip
sections = st.dictionaries(st.text(), values, max_size=4)


@st.composite
def vectors(draw: st.DrawFn) -> Vector:
    n_embd, n_layer = draw(st.integers(1, 40)), draw(st.integers(2, 100))
    entries = hnp.arrays(np.float32, n_embd, elements=st.floats(-1e4, 1e4, width=32))
    safe, unsafe, shift = draw(entries), draw(entries), draw(entries)
    assume(float(np.abs(unsafe - safe).max()) > 0.01)
    assume(abs(float(projection(unsafe - safe) @ shift)) < 99)
    media = draw(st.sets(st.sampled_from(["image", "video"])))
    spreads = {m: draw(plausible) for m in ("text", *media)}
    return Vector(
        draw(st.integers(1, n_layer - 1)),
        Geometry(
            safe, unsafe, projection(unsafe - safe).astype(np.float32),
            {m: np.zeros_like(safe) if m == "text" else shift for m in spreads},
            spreads, {m: draw(plausible) for m in spreads}, draw(plausible), draw(plausible),
        ),
        ModelFingerprint(
            draw(st.text()), draw(st.text()), n_layer, n_embd, *draw(st.tuples(*[st.text()] * 3))
        ),
        draw(sections), draw(sections),
    )  # fmt: skip


@settings(deadline=None)
@given(vectors())
def test_what_is_written_is_read_back_to_the_bit(tmp_path_factory, vector):
    path = tmp_path_factory.mktemp("vectors") / "a.gguf"
    write_vector(vector, path)
    assert same(read_vector(path), vector)


def test_the_file_is_the_documented_layout_byte_for_byte(tmp_path):
    write_vector(VECTOR, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == gguf_file()
    assert same(read_vector(tmp_path / "a.gguf"), VECTOR)


def test_the_vector_of_the_demo_model_is_written_again_byte_for_byte(tmp_path):
    write_vector(read_vector(demo_model.VECTOR), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == demo_model.VECTOR.read_bytes()


class _InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p))]


@pytest.mark.skipif(sys.platform == "win32", reason="ggml is a library of its own there")
def test_llama_cpp_finds_what_its_control_vector_loader_demands(tmp_path):
    from llama_cpp import llama_cpp

    def call(name: str, result: Any, *args: Any) -> Any:
        function = getattr(llama_cpp._lib, name)
        function.restype = result
        return function(*args)

    write_vector(VECTOR, tmp_path / "a.gguf")
    context = ctypes.c_void_p()
    params = _InitParams(False, ctypes.pointer(context))
    path = os.fsencode(tmp_path / "a.gguf")
    file = ctypes.c_void_p(call("gguf_init_from_file", ctypes.c_void_p, path, params))
    assert file.value, "llama.cpp's GGUF reader refuses the file"
    try:
        assert call("gguf_get_n_tensors", ctypes.c_int64, file) == 1
        assert call("gguf_get_tensor_name", ctypes.c_char_p, file, ctypes.c_int64(0)) == (
            b"direction.3"
        )
        assert call("gguf_get_tensor_type", ctypes.c_int, file, ctypes.c_int64(0)) == 0  # F32
        tensor = ctypes.c_void_p(call("ggml_get_tensor", ctypes.c_void_p, context, b"direction.3"))
        assert call("ggml_n_dims", ctypes.c_int, tensor) == 1
        assert call("ggml_nelements", ctypes.c_int64, tensor) == 4
        data = call("ggml_get_data_f32", ctypes.POINTER(ctypes.c_float), tensor)
        assert data[:4] == (UNSAFE - SAFE).tolist()
    finally:
        call("gguf_free", None, file)
        call("ggml_free", None, context)


def test_float64_states_with_massive_activations_are_kept_to_float32_precision(tmp_path):
    rng = np.random.default_rng(0)
    safe, r = rng.normal(size=4096), 1e-2 * rng.normal(size=4096)
    safe[7] = 3e4
    geometry = Geometry(
        safe, safe + r, projection(r), {"text": 0 * safe}, {"text": 1 / 3}, {"text": 1 / 3},
        1 / 3, 1 / 3,
    )  # fmt: skip
    write_vector(Vector(1, geometry, replace(MODEL, n_embd=4096)), tmp_path / "a.gguf")
    found = read_vector(tmp_path / "a.gguf").geometry
    for one, other in (
        (found.safe, safe),
        (found.unsafe, safe + r),
        (found.readout, projection(r)),
    ):
        np.testing.assert_array_equal(one, other.astype(np.float32))
    assert found.spreads == found.thresholds == {"text": np.float32(1 / 3)}
    assert found.gate_ramp == found.trust_limit == np.float32(1 / 3)


@pytest.mark.parametrize("reasoning", ["off", "thought", "answer"])
def test_how_the_model_thinks_is_stored_and_nothing_of_models_that_do_not(tmp_path, reasoning):
    vector = replace(VECTOR, model=replace(MODEL, reasoning=reasoning))
    write_vector(vector, tmp_path / "a.gguf")
    assert read_vector(tmp_path / "a.gguf").model.reasoning == reasoning
    write_vector(VECTOR, tmp_path / "b.gguf")
    assert b"reasoning" not in (tmp_path / "b.gguf").read_bytes()
    assert read_vector(tmp_path / "b.gguf").model.reasoning == ""


# Writes are whole or not there


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


UNWRITABLE: dict[str, Any] = {
    "a spread below float32": replace(VECTOR, geometry=replace(GEOMETRY, gate_ramp=1e-60)),
    "a spread above float32": replace(VECTOR, geometry=replace(GEOMETRY, gate_ramp=1e60)),
    "NaN": replace(VECTOR, geometry=replace(GEOMETRY, safe=np.full(4, np.nan, np.float32))),
    "coinciding centroids": replace(VECTOR, geometry=replace(GEOMETRY, unsafe=SAFE)),
    "a scalar for an array": replace(VECTOR, geometry=replace(GEOMETRY, safe=np.array(1.0))),
    "block 0": replace(VECTOR, layer=0),
    "a negative count": replace(VECTOR, calibration={"n": -1}),
    "a mixed list": replace(VECTOR, calibration={"n": [1, "a"]}),
    "a lone surrogate": replace(VECTOR, source={"file": "\ud800"}),
    "another type": replace(VECTOR, source={"file": cast(Any, object())}),
    "too many keys": replace(VECTOR, source={str(i): 1 for i in range(MAX_KEYS)}),
    "too many strings": replace(VECTOR, source={"files": ["x"] * (MAX_KEYS + 1)}),
    "a long string": replace(VECTOR, source={"file": "x" * (MAX_STRING_BYTES + 1)}),
}


@pytest.mark.parametrize("vector", UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_could_not_be_read_back_is_not_written_and_the_old_file_stays(tmp_path, vector):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(VectorError):
        write_vector(vector, path)
    assert contents(tmp_path) == {"a.gguf": b"old"}
