from __future__ import annotations

import ctypes
import hashlib
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mars_gguf.errors import MarsError, VectorError
from mars_gguf.files import sha256
from mars_gguf.steering import Geometry, projection
from mars_gguf.vectors import (
    FORGIVABLE,
    MAX_FILE_BYTES,
    MAX_LISTED,
    ModelFingerprint,
    Vector,
    parse_vector,
    read_vector,
    sealed,
    write_vector,
)
from mars_gguf.vectors.describe import describe
from mars_gguf.vectors.reader import MAX_KEYS, MAX_STRING_BYTES

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


# Writing and reading back

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


def test_gguf_py_reads_the_same_keys_types_and_tensor(tmp_path):
    write_vector(VECTOR, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    found = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert {k: int(f.types[0]) for k, f in found.items()} == {k: t for k, (t, _) in KEYS.items()}
    for key, array_ in (("mars.centroid.safe", SAFE), ("mars.shift.image", SHIFT)):
        assert found[key].types[1] == gguf.GGUFValueType.FLOAT32
        assert found[key].contents() == array_.tolist()
    assert found["mars.source.media"].contents() == ["noise", "drawn"]
    assert found["mars.trust.limit"].contents() == 1.75
    (tensor,) = reader.tensors
    assert (tensor.name, tensor.tensor_type) == ("direction.3", gguf.GGMLQuantizationType.F32)
    np.testing.assert_array_equal(tensor.data, UNSAFE - SAFE)


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


def test_who_reads_the_old_file_while_a_new_one_is_written_keeps_the_old(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_vector(VECTOR, path)
        assert reader.read() == b"old"
    assert contents(tmp_path) == {"a.gguf": gguf_file()}


class Interrupting(dict[str, Any]):
    def items(self) -> Any:
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_vector(replace(VECTOR, source=Interrupting()), path)
    assert contents(tmp_path) == {"a.gguf": b"old"}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path):
    import resource

    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(MarsError, match="a.gguf: cannot be written: File too large"):
            write_vector(VECTOR, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == {"a.gguf": b"old"}


# Hostile files


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole, path = gguf_file(), tmp_path / "a.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


def test_a_file_of_which_any_bit_was_changed_is_refused(tmp_path):
    whole = gguf_file()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VectorError):
            parse_vector(bytes(damaged))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_changed_byte_under_a_right_hash_gives_a_refusal_or_values_that_are_all_usable():
    whole = gguf_file()
    rng = np.random.default_rng(0)
    accepted = 0
    for offset in range(len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << int(rng.integers(8))
        try:
            vector = parse_vector(sealed(bytes(damaged)))
        except VectorError:
            continue
        vector.check()
        describe(vector)
        accepted += 1
    assert 0 < accepted < 0.6 * len(whole)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_file())
    size = path.stat()
    path.write_bytes(gguf_file()[:-64])
    monkeypatch.setattr(Path, "stat", lambda *args, **kwargs: size)
    assert "truncated" in refused(path)


def test_arrays_and_strings_of_many_megabytes_are_refused_in_few(tmp_path):
    many = array(0, 60 << 20, bytes(60 << 20))
    name = string("n" * (1 << 20))
    for changes in ({"mars.calibration.x": many}, {"mars.model.name": name, "mars.layer": name}):
        path = tmp_path / "a.gguf"
        path.write_bytes(gguf_file(changes))
        began = time.perf_counter()
        tracemalloc.start()
        assert len(refused(path)) < 1000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < path.stat().st_size + (8 << 20)
        assert time.perf_counter() - began < 5


HUGE = [2**31, 2**32 - 1, 2**60, 2**62, 2**63, 2**64 - 1]


def lying(count: int) -> dict[str, bytes]:
    """Files that claim ``count`` of something."""
    length, u32_ = struct.pack("<Q", count), struct.pack("<I", U32)
    return {
        "keys": gguf_file(n_keys=count),
        "tensors": gguf_file(n_tensors=count),
        "bytes of a key": gguf_file(further=length + b"mars" + u32_, n_keys=len(KEYS) + 1),
        "bytes of a string": gguf_file({"x": (STRING, length + b"mars")}),
        "bytes of an item": gguf_file({"x": array(STRING, 2, text("a") + length)}),
        **{
            f"items of type {item}": gguf_file({"x": array(item, count, bytes(64))})
            for item in range(13)
        },
        "values of the tensor": gguf_file(tensors=[("direction.3", [count], 0, 0)]),
        "bytes before the tensor": gguf_file(tensors=[("direction.3", [4], 0, count)]),
        "bytes of alignment": gguf_file({"general.alignment": (U64, length)}),
    }


@pytest.mark.parametrize("count", HUGE)
def test_sizes_are_bounded_before_anything_is_allocated(tmp_path, count):
    path = tmp_path / "a.gguf"
    for what, content in lying(count).items():
        path.write_bytes(content)
        tracemalloc.start()
        refused(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20, what


def test_a_file_too_large_to_be_a_vector_is_not_read(tmp_path):
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(gguf_file())
        file.truncate(MAX_FILE_BYTES + 1)
    assert refused(path).startswith("67108865 bytes, expected at most 67108864")


def test_arrays_within_arrays_are_refused_at_any_depth(tmp_path):
    nested = b""
    for _ in range(5000):
        nested = struct.pack("<IQ", ARRAY, 1) + nested
    (tmp_path / "a.gguf").write_bytes(gguf_file({"x": (ARRAY, nested)}))
    assert "an array of 1 values of type 9: not expected here" in refused(tmp_path / "a.gguf")


NAN, INF = float("nan"), float("inf")
TWO = [("direction.3", [4], 0, 0), ("direction.4", [4], 0, 32)]
BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "truncated"),
    (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    (gguf_file()[:4][::-1] + gguf_file()[4:], "not a GGUF file"),
    (gguf_file(version=1), "GGUF version 1, expected 2 or 3"),
    (gguf_file(version=0x03000000), "GGUF version 50331648"),
    (gguf_file({"general.architecture": string("llama")}), "architecture 'llama', expected 'contr"),
    (gguf_file({"general.architecture": None}), "architecture None"),
    (gguf_file({"general.architecture": f32s(1, 2)}), "architecture array"),
    (gguf_file({"mars.version": None}), "no mars.* metadata"),
    (gguf_file({"mars.version": u32(5)}), "mars.version: found 5, expected 4. Update mars-gguf"),
    (gguf_file({"mars.version": u32(1)}), "mars.version: found 1, expected 4: since then several"),
    (gguf_file({"mars.version": u32(2)}), "mars.version: found 2, expected 4: since then the gate"),
    (gguf_file({"mars.version": u32(3)}), "mars.version: found 3, expected 4: since then a vec"),
    (gguf_file({"mars.sha256": None}), "mars.sha256: found None, expected 64 hexadecimal digits"),
    (gguf_file({"mars.sha256": u32(1)}), "mars.sha256: found 1, expected 64 hexadecimal digits"),
    (gguf_file({"mars.sha256": string("a" * 64)}), "mars.sha256: found 'aaaaaaaaaaaa'..., but"),
    (gguf_file({"mars.readout": None}), "mars.readout is missing"),
    (gguf_file({"mars.readoux": f32(1)}), "keys: found ['mars.readoux'], expected only those of"),
    (gguf_file({"mars.shift.smell": f32(1)}), "keys: found ['mars.shift.smell'], expected only"),
    (gguf_file({"mars.model.nam": string("")}), "keys: found ['mars.model.nam'], expected only"),
    (
        gguf_file({"mars.calibration.t": f32s(*[0] * (MAX_LISTED + 1))}),
        "mars.calibration.t: found 4097 values, expected at most 4096",
    ),
    (gguf_file({"mars.version": string("1")}), "mars.version: found str, expected int"),
    (gguf_file({"mars.version": (BOOL, b"\1")}), "mars.version: found bool, expected int"),
    (gguf_file({"mars.layer": u32(0)}), "tensors: found ['direction.3'], expected exactly direct"),
    (
        gguf_file({"mars.layer": u32(0)}, tensors=[("direction.0", [4], 0, 0)]),
        "mars.layer: found 0, expected 1 to 7 (llama.cpp cannot steer block 0)",
    ),
    (
        gguf_file({"mars.layer": u32(8)}, tensors=[("direction.8", [4], 0, 0)]),
        "mars.layer: found 8, expected 1 to 7",
    ),
    (gguf_file({"mars.layer": f32(3)}), "mars.layer: found float, expected int"),
    (gguf_file({"mars.centroid.safe": None}), "mars.centroid.safe is missing"),
    (gguf_file({"mars.centroid.safe": f32(1)}), "mars.centroid.safe: found float"),
    (
        gguf_file({"mars.centroid.safe": array(12, 4, bytes(32))}),
        "mars.centroid.safe: found ndarray, expected an array of float32",
    ),
    (
        gguf_file({"mars.centroid.safe": f32s(1, 2)}),
        "mars.centroid.safe: found shape (2,), expected (4,)",
    ),
    *(
        (gguf_file({"mars.centroid.unsafe": f32s(*unsafe)}), message)
        for unsafe, message in (
            (UNSAFE[:2], "mars.centroid.unsafe: found shape (2,), expected (4,)"),
            (SAFE, "direction: found length 0.0, expected a length above 0"),
            ((NAN, 0, 0, 0), "mars.centroid.unsafe: found NaN or infinite values"),
        )
    ),
    (gguf_file({"mars.readout": f32s()}), "mars.readout: found shape (0,), expected (4,)"),
    (gguf_file({"mars.shift.image": f32s(0, 0, 0)}), "mars.shift.image: found shape (3,)"),
    (gguf_file({"mars.shift.image": None}), "mars.shift.image is missing"),
    (gguf_file({"mars.shift.text": f32s(0, 0, 0, 1)}), "mars.shift.text: found a shift"),
    (
        gguf_file({"mars.spread.text": None, "mars.shift.text": None}),
        "mars.spread.text: found noth",
    ),
    (gguf_file({"mars.readout": f32s(0, 1, NAN, 0)}), "mars.readout: found NaN or infinite"),
    (gguf_file({"mars.centroid.unsafe": f32s(INF, 1, 2, 3)}), "centroid.unsafe: found NaN or inf"),
    (
        gguf_file({"mars.shift.image": f32s(0, -INF, 0, 0)}),
        "mars.shift.image: found NaN or infinite",
    ),
    (gguf_file({"mars.centroid.unsafe": f32s(*SAFE)}), "direction: found length 0.0"),
    (
        gguf_file(
            {"mars.centroid.safe": f32s(*[-3e38] * 4), "mars.centroid.unsafe": f32s(*[3e38] * 4)}
        ),
        "direction: found length inf",
    ),
    (
        gguf_file({"mars.readout": f32s(*(2 * READOUT))}),
        "mars.readout: found 2 along the direction",
    ),
    (gguf_file({"mars.readout": f32s(*-READOUT)}), "mars.readout: found -1 along the direction"),
    *(
        (gguf_file({key: f32(bad)}), f"expected {bounds}")
        for key, bounds in (
            ("mars.spread.text", "1e-06 to 10"),
            ("mars.spread.image", "1e-06 to 10"),
            ("mars.gate.ramp", "0.001 to 1000"),
            ("mars.trust.limit", "0.05 to 10"),
        )
        for bad in (1e-40, 1e20)
    ),
    *(
        (gguf_file({key: f32(bad)}), f"{key}: found {bad:.1f}, expected a finite number above 0")
        for key in ("mars.spread.text", "mars.spread.image", "mars.gate.ramp", "mars.trust.limit")
        for bad in (0.0, -1.0, NAN, INF)
    ),
    *(
        (gguf_file({"mars.threshold.text": f32(bad)}), "mars.threshold.text: found ")
        for bad in (3e38, -3e38, INF)
    ),
    (gguf_file({"mars.threshold.image": f32(NAN)}), "mars.threshold.image: found nan"),
    (gguf_file({"mars.threshold.text": f32s(1)}), "mars.threshold.text: found ndarray, expected f"),
    (gguf_file({"mars.threshold.text": None}), "mars.threshold.text is missing"),
    (gguf_file({"mars.model.n_embd": u32(0)}), "mars.model.n_embd: found 0"),
    (gguf_file({"mars.model.n_embd": u32(2**32 - 1)}), "mars.model.n_embd: found 4294967295"),
    (gguf_file({"mars.model.n_layer": u32(2**32 - 1)}), "mars.model.n_layer: found 4294967295"),
    (gguf_file({"mars.model.tokenizer_sha256": None}), "mars.model.tokenizer_sha256 is missing"),
    (gguf_file({"mars.model.name": u32(1)}), "mars.model.name: found int, expected str"),
    (gguf_file({"x": string(b"\xff\xfe")}), "not UTF-8"),
    (gguf_file({"x": (13, b"")}), "unknown GGUF value type 13"),
    (gguf_file({"x": array(13, 1, b"")}), "an array of 1 values of type 13"),
    (
        gguf_file(further=text("mars.layer") + struct.pack("<II", U32, 3), n_keys=len(KEYS) + 1),
        "key 'mars.layer' appears twice",
    ),
    (gguf_file(tensors=TWO, data=np.zeros(12)), "2 tensors, expected"),
    (gguf_file(tensors=[]), "0 tensors, expected"),
    (gguf_file(tensors=[("direction.4", [4], 0, 0)]), "found ['direction.4'], expected exactly"),
    (gguf_file(tensors=[("direction.3", [2, 2], 0, 0)]), "has 2 dimensions, expected 1"),
    (gguf_file(tensors=[("direction.3", [], 0, 0)]), "has 0 dimensions, expected 1"),
    (gguf_file(tensors=[("direction.3", [4], 1, 0)]), "has type 1, expected 0 (F32)"),
    (gguf_file(tensors=[("direction.3", [3], 0, 0)]), "direction.3: found (3,), expected [4]"),
    (gguf_file(tensors=[("direction.3", [0], 0, 0)]), "direction.3: found (0,), expected [4]"),
    (gguf_file(data=SAFE - UNSAFE), "direction.3: found another direction"),
    (gguf_file(data=1.001 * (UNSAFE - SAFE)), "direction.3: found another direction"),
    (gguf_file(data=np.array([1, 2, 0, NAN])), "direction.3: found another direction"),
    (gguf_file(data=np.array([INF, 2, 0, -2])), "direction.3: found another direction"),
    (gguf_file({"general.alignment": u32(0)}), "general.alignment: found 0, expected 1 to 4096"),
    (gguf_file({"general.alignment": string("a")}), "general.alignment: found 'a'"),
]


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("content", "cause"), BAD_FILES, ids=[c for _, c in BAD_FILES])
def test_a_wrong_file_is_refused_naming_file_and_cause(tmp_path, content, cause):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert cause in refused(path)


def test_a_model_and_another_tools_control_vector_are_told_apart_from_ours(tmp_path):
    model = Path(str(files("mars_gguf.demo_model") / "text-Q4_K_M.gguf"))
    assert "Is it a model" in refused(model)

    for n_tensors, cause in ((1, "no mars.* metadata"), (7, "another tool")):
        path = tmp_path / f"{n_tensors}.gguf"
        writer = gguf.GGUFWriter(path, "controlvector")
        writer.add_string("controlvector.model_hint", "llama")
        writer.add_uint32("controlvector.layer_count", n_tensors)
        for layer in range(1, n_tensors + 1):
            writer.add_tensor(f"direction.{layer}", UNSAFE)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert cause in refused(path)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for name in ("loop", "dangling", "gone", "pipe", ".", "nul\0", "x" * 300, "a/" * 3000):
        refused(tmp_path / name)


# Belonging to a model

OTHER: dict[str, Any] = {
    "architecture": "qwen2",
    "name": "Other Chat",
    "n_layer": 9,
    "n_embd": 5,
    "quantization": "Q8_0",
    "chat_template_sha256": "12" * 32,
    "tokenizer_sha256": "34" * 32,
    "chat_template_kwargs": '{"enable_thinking": false}',
    "weights_sha256": "56" * 32,
    "mmproj_sha256": "78" * 32,
    "reasoning": "answer",
}
FULL = replace(VECTOR, model=replace(MODEL, mmproj_sha256="90" * 32, reasoning="off"))


@given(st.sets(st.sampled_from([f.name for f in fields(ModelFingerprint)])))
def test_force_forgives_other_weights_and_templates_and_no_other_shape(changed):
    model = replace(FULL.model, **{key: OTHER[key] for key in changed})
    for force, named in ((False, changed), (True, changed - FORGIVABLE)):
        if not named:
            FULL.require_model(model, force=force)
            continue
        with pytest.raises(VectorError, match="made for another model") as caught:
            FULL.require_model(model, force=force)
        message = str(caught.value)
        for key in OTHER:
            assert (f"  {key}: the vector was made for" in message) == (key in named)
        for key in named:
            assert str(getattr(FULL.model, key))[:12] in message
            assert str(OTHER[key])[:12] in message
        assert ("--force" in message) == (changed <= FORGIVABLE)


@given(st.sets(st.sampled_from([k for k, v in OTHER.items() if isinstance(v, str)])))
def test_what_is_not_known_of_a_model_is_not_held_against_it(unknown):
    blank = replace(MODEL, **dict.fromkeys(unknown, ""))
    VECTOR.require_model(blank)
    replace(VECTOR, model=blank).require_model(MODEL)


def test_a_vector_of_before_thoughts_is_refused_for_a_model_that_thinks():
    thinks = replace(MODEL, reasoning="answer")
    for vector, model in ((VECTOR, thinks), (replace(VECTOR, model=thinks), MODEL)):
        with pytest.raises(VectorError, match="reasoning: the vector was made for"):
            vector.require_model(model)
        vector.require_model(model, force=True)


@pytest.mark.parametrize("reasoning", ["off", "thought", "answer"])
def test_how_the_model_thinks_is_stored_and_nothing_of_models_that_do_not(tmp_path, reasoning):
    vector = replace(VECTOR, model=replace(MODEL, reasoning=reasoning))
    write_vector(vector, tmp_path / "a.gguf")
    assert read_vector(tmp_path / "a.gguf").model.reasoning == reasoning
    write_vector(VECTOR, tmp_path / "b.gguf")
    assert b"reasoning" not in (tmp_path / "b.gguf").read_bytes()
    assert read_vector(tmp_path / "b.gguf").model.reasoning == ""


def test_another_word_for_reasoning_is_refused(tmp_path):
    with pytest.raises(VectorError, match=r"mars.model.reasoning: found on, expected off, thought"):
        write_vector(replace(VECTOR, model=replace(MODEL, reasoning="on")), tmp_path / "a.gguf")


# python -m mars_gguf.vectors


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mars_gguf.vectors", *arguments],
        capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip


def test_the_command_prints_what_a_vector_holds_and_its_identity(tmp_path):
    source = {"note": "\x1b[2J\x9bü\nmodel  none", "media": ["noise", "drawn"]}
    model = replace(MODEL, reasoning="answer")
    write_vector(replace(VECTOR, source=source, model=model), tmp_path / "a.gguf")
    done = run_command(str(tmp_path / "a.gguf"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "model       Tiny Chat (llama, 8 blocks, n_embd 4, Q4_K_M)"
    assert {
        "reasoning   answer",
        "layer       3",
        "direction   D = 3",
        "calibration auroc = 0.9375",
    } <= set(lines)
    assert "source      media = 2 values" in lines
    image = next(line for line in lines if line.startswith("image"))
    assert "spread 0.25, shift 2.36 D, gate opens at t = -0.5" in image
    assert lines[-1].split() == ["sha256", sha256(tmp_path / "a.gguf")]
    assert "source      note = \\x1b[2J\\x9bü\\nmodel  none" in lines


def test_the_command_ends_with_code_2_and_no_traceback_for_bad_files(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(gguf_file({"mars.spread.\x1b[2J": f32(1)}))
    for path in (tmp_path / "bad.gguf", tmp_path / "gone.gguf", tmp_path):
        done = run_command(str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {path}: ")
        assert "\x1b" not in done.stderr
        assert "Traceback" not in done.stderr
