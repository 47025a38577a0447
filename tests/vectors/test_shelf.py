"""A folder of vectors by their weights: what is put there is found, and what is not as it was put
there is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from vector_files import MODEL, VECTOR

from mars_gguf.errors import MarsError
from mars_gguf.files import sha256
from mars_gguf.vectors import Vector, write_vector
from mars_gguf.vectors.shelf import MAX_INDEX_BYTES, in_folder, publish, vectors_of

WEIGHTS = MODEL.weights_sha256
OTHER = replace(VECTOR, model=replace(MODEL, mmproj_sha256="12" * 32))


def written(path: Path, vector: Vector = VECTOR) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_vector(vector, path)
    path.with_suffix(".md").write_text(f"# {path.name}", "utf-8")
    return path


def found(shelf: Path, weights: str = WEIGHTS) -> list[Path]:
    return [path for path, _ in vectors_of(weights, in_folder(shelf), "the shelf")]


def refused(shelf: Path) -> str:
    with pytest.raises(MarsError) as caught:
        found(shelf)
    return str(caught.value)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    publish(tmp_path / "shelf", [written(tmp_path / "a.gguf")])
    return tmp_path / "shelf"


def test_a_vector_is_found_by_its_weights_with_its_card_beside_it(shelf: Path) -> None:
    [path] = found(shelf)
    assert path == shelf / "vectors" / f"{WEIGHTS}.gguf"
    assert path.read_bytes() == (shelf.parent / "a.gguf").read_bytes()
    assert path.with_suffix(".md").read_text("utf-8") == "# a.gguf"
    assert found(shelf, "ab" * 32) == []


def test_the_index_has_the_hash_of_every_file(shelf: Path) -> None:
    index = json.loads((shelf / "vectors/index.json").read_text("utf-8"))
    files = [path for path in (shelf / "vectors").iterdir() if path.name != "index.json"]
    assert index == {"files": {path.name: sha256(path) for path in files}}
    assert len(files) == 2


def test_another_of_the_same_weights_stands_beside_it_and_a_newer_one_in_its_place(
    shelf: Path,
) -> None:
    newer = replace(VECTOR, calibration={"prompts": 65})
    publish(
        shelf, [written(shelf.parent / "b.gguf", OTHER), written(shelf.parent / "c.gguf", newer)]
    )
    names = [f"{WEIGHTS}-2.gguf", f"{WEIGHTS}.gguf"]
    assert [path.name for path in found(shelf)] == names
    read = [vector for _, vector in vectors_of(WEIGHTS, in_folder(shelf), "")]
    assert [vector.model for vector in read] == [OTHER.model, MODEL]
    assert read[1].calibration == {"prompts": 65}


@pytest.mark.parametrize("suffix", [".gguf", ".md"])
def test_a_file_that_is_not_the_one_that_was_put_there_is_refused(
    suffix: str, shelf: Path, tmp_path: Path
) -> None:
    file = shelf / f"vectors/{WEIGHTS}{suffix}"
    # Whole by itself, so that only the index tells.
    written(tmp_path / "other.gguf", OTHER).with_suffix(suffix).replace(file)
    assert f"the shelf: vectors/{file.name}: found" in refused(shelf)
    file.unlink()
    assert "found no such file" in refused(shelf)


def test_a_vector_of_other_weights_under_the_name_of_these_is_refused(
    shelf: Path, tmp_path: Path
) -> None:
    stranger = replace(VECTOR, model=replace(MODEL, weights_sha256="ab" * 32))
    file, index = shelf / f"vectors/{WEIGHTS}.gguf", shelf / "vectors/index.json"
    write_vector(stranger, file)
    names = json.loads(index.read_text())["files"] | {file.name: sha256(file)}
    index.write_text(json.dumps({"files": names}))
    assert "a vector of other weights than its name says" in refused(shelf)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"\xff", b'{"files": []}', b'{"files": {"HASH.gguf": "short"}}',
        b'{"files": {"HASH.gguf": 3}}', b'{"files": {"../HASH.gguf": "HASH"}}',
        b'{"files": {"HASH.exe": "HASH"}}', b'{"files":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(content: bytes, shelf: Path) -> None:
    (shelf / "vectors/index.json").write_bytes(content.replace(b"HASH", WEIGHTS.encode()))
    assert refused(shelf).startswith("the shelf: vectors/index.json is damaged")


def test_an_index_beyond_all_measure_is_not_read(shelf: Path) -> None:
    (shelf / "vectors/index.json").write_bytes(b" " * (MAX_INDEX_BYTES + 1))
    assert f"{MAX_INDEX_BYTES + 1} bytes, expected at most" in refused(shelf)


def without_card(path: Path) -> None:
    path.with_suffix(".md").unlink()


def without_weights(path: Path) -> None:
    write_vector(replace(VECTOR, model=replace(MODEL, weights_sha256="")), path)


def of_a_path(path: Path) -> None:
    write_vector(replace(VECTOR, model=replace(MODEL, weights_sha256="../" * 20 + "etc/x")), path)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_card, "no card beside it, expected b.md"),
        (without_weights, "does not know the weights"),
        (of_a_path, "does not know the weights"),
        (damaged, "it is damaged, or was changed"),
    ],
)
def test_what_cannot_be_found_again_is_not_published_nor_is_what_is_beside_it(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    good, bad = written(tmp_path / "a.gguf"), written(tmp_path / "b.gguf")
    spoil(bad)
    with pytest.raises(MarsError, match=message):
        publish(tmp_path / "shelf", [good, bad])
    assert not (tmp_path / "shelf").exists()
