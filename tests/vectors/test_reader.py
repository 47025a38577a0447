from __future__ import annotations

import os
import time
import tracemalloc
from importlib.resources import files
from pathlib import Path

import gguf
import numpy as np
import pytest
from vector_files import (
    BOOL,
    READOUT,
    SAFE,
    UNSAFE,
    array,
    f32,
    f32s,
    gguf_file,
    refused,
    string,
    u32,
)  # fmt: skip

from mars_gguf.errors import VectorError
from mars_gguf.vectors import MAX_FILE_BYTES, parse_vector, sealed
from mars_gguf.vectors.describe import describe
from mars_gguf.vectors.format import MAX_LISTED


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole, path = gguf_file(), tmp_path / "a.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


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


def test_a_file_too_large_to_be_a_vector_is_not_read(tmp_path):
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(gguf_file())
        file.truncate(MAX_FILE_BYTES + 1)
    assert refused(path).startswith("67108865 bytes, expected at most 67108864")


NAN, INF = float("nan"), float("inf")
BAD_FILES: list[tuple[bytes, str]] = [
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
        (gguf_file({key: f32(bad)}), f"expected {bounds}. Convert the model again.")
        for key, bounds in (
            ("mars.spread.text", "1e-06 to 10"),
            ("mars.spread.image", "1e-06 to 10"),
            ("mars.gate.ramp", "0.001 to 1000"),
            ("mars.trust.limit", "0.05 to 10"),
        )
        for bad in (0.0, -1.0, 1e-40, 1e20, NAN, INF)
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
    (gguf_file(tensors=[("direction.4", [4], 0, 0)]), "found ['direction.4'], expected exactly"),
    (gguf_file(tensors=[("direction.3", [3], 0, 0)]), "direction.3: found (3,), expected [4]"),
    (gguf_file(tensors=[("direction.3", [0], 0, 0)]), "direction.3: found (0,), expected [4]"),
    (gguf_file(data=SAFE - UNSAFE), "direction.3: found another direction"),
    (gguf_file(data=1.001 * (UNSAFE - SAFE)), "direction.3: found another direction"),
    (gguf_file(data=np.array([1, 2, 0, NAN])), "direction.3: found another direction"),
    (gguf_file(data=np.array([INF, 2, 0, -2])), "direction.3: found another direction"),
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
