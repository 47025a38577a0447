"""A model is known by its weights, and a file that is none is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from models import DEMO, steered, vector

from mars_gguf.demo_model import MMPROJ, TEXT_MODEL, VECTOR
from mars_gguf.errors import ModelError, VectorError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.weights import (
    SAMPLE_BYTES,
    SAMPLES,
    quantization_name,
    shards,
    weights_sha256,
)
from mars_gguf.vectors import read_vector

Array = npt.NDArray[np.float32]
TENSORS = {
    "blk.0.weight": np.arange(4096, dtype=np.float32).reshape(64, 64),
    "blk.1.weight": np.ones((64, 64), np.float32),
    "norm": np.ones(3, np.float32),
}


def write(path: Path, tensors: dict[str, Array], shards: int = 0, **keys: str) -> str:
    writer = gguf.GGUFWriter(path, "llama")
    if shards:
        writer.add_uint16("split.count", shards)
    for key, value in keys.items():
        writer.add_string(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def sha(tmp_path: Path, tensors: dict[str, Array], **keys: str) -> str:
    return weights_sha256([write(tmp_path / "a.gguf", tensors, **keys)])


def test_the_same_weights_have_the_same_hash_whatever_is_said_of_them(tmp_path: Path) -> None:
    assert sha(tmp_path, TENSORS) == sha(tmp_path, TENSORS, description="a copy")


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * np.float32(1.001),
        lambda x: x.astype(np.float16),
        lambda x: np.concatenate([x, x]),
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, 7, x).astype(np.float32),
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, 7, x).astype("f4"),
    ],
    ids=["scaled", "another type", "longer", "its first value", "its last value"],
)
def test_changed_weights_of_any_tensor_have_another_hash(
    tmp_path: Path, name: str, change: Callable[[Array], Array]
) -> None:
    assert sha(tmp_path, TENSORS | {name: change(TENSORS[name])}) != sha(tmp_path, TENSORS)


def test_little_is_read_of_a_large_tensor(tmp_path: Path) -> None:
    middle = TENSORS["blk.0.weight"].copy()
    middle.reshape(-1)[100] = 7
    assert sha(tmp_path, TENSORS | {"blk.0.weight": middle}) == sha(tmp_path, TENSORS)
    assert 0.02 * middle.nbytes > SAMPLES * SAMPLE_BYTES


def test_a_model_in_several_files_is_all_of_them_whichever_is_named(tmp_path: Path) -> None:
    names = [f"m-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    paths = [
        write(tmp_path / file, {name: values}, 3)
        for file, (name, values) in zip(names, TENSORS.items(), strict=True)
    ]
    assert shards(paths[1]) == [str(tmp_path / name) for name in names]
    whole = {weights_sha256([path]) for path in paths}
    assert len(whole) == 1
    write(tmp_path / names[2], {"norm": 2 * TENSORS["norm"]}, 3)
    assert weights_sha256(paths[:1]) not in whole
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelError, match="00002-of-00003.gguf"):
        weights_sha256(paths[:1])


@pytest.mark.parametrize("name", ["m-00001-of-00002.gguf", "m-00001-of-00000.gguf"])
def test_a_whole_model_that_is_named_like_a_part_is_whole(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, TENSORS)
    assert shards(path) == [path]
    assert weights_sha256([path]) == weights_sha256([write(tmp_path / "m.gguf", TENSORS)])


def test_a_vector_knows_the_weights_and_the_mmproj_that_it_was_measured_with() -> None:
    vector = read_vector(VECTOR)
    model = vector.model
    assert model.weights_sha256 == weights_sha256([str(TEXT_MODEL)])
    assert model.mmproj_sha256 == weights_sha256([str(MMPROJ)])
    for key in ("weights_sha256", "mmproj_sha256"):
        other = replace(vector, model=replace(model, **{key: "12" * 32}))
        arguments = {"vector": other, "mmproj": str(MMPROJ), "verbose": False, "n_ctx": 256}
        with pytest.raises(VectorError, match=f"{key}: the vector was made for 121212121212"):
            SteeredLlama(str(TEXT_MODEL), **arguments)
        assert SteeredLlama(str(TEXT_MODEL), force=True, **arguments).steerer.push.way == "inline"
    textual = replace(vector, model=replace(model, mmproj_sha256="12" * 32))
    SteeredLlama(str(TEXT_MODEL), vector=textual, verbose=False, n_ctx=256)


def test_models_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    given = vector(DEMO)
    text, whole = tmp_path / "notes.gguf", Path(DEMO).read_bytes()
    text.write_text("no model")
    for part in (1000, len(whole) // 2):
        (tmp_path / f"part{part}.gguf").write_bytes(whole[:part])
        with pytest.raises(ModelError, match="whole"):
            steered(str(tmp_path / f"part{part}.gguf"), given)
    with pytest.raises(ModelError, match="not a GGUF"):
        steered(str(text), given)
    with pytest.raises(ModelError, match="no such file"):
        steered(str(tmp_path / "none.gguf"), given)
    with pytest.raises(ModelError, match="not a file"):
        steered(str(tmp_path), given)


def test_the_names_of_quantizations() -> None:
    assert [quantization_name(x) for x in ("15", "0", "x", None, "99999")] == [
        "Q4_K_M", "F32", "", "", "",
    ]  # fmt: skip
