"""A folder of vectors by their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from vector_files import MODEL, VECTOR

from mars_gguf.errors import MarsError
from mars_gguf.vectors import Vector, read_vector, write_vector
from mars_gguf.vectors.shelf import publish

WEIGHTS = MODEL.weights_sha256
OTHER = replace(VECTOR, model=replace(MODEL, mmproj_sha256="12" * 32))


def written(path: Path, vector: Vector = VECTOR) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_vector(vector, path)
    path.with_suffix(".md").write_text(f"# {path.name}", "utf-8")
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    publish(tmp_path / "shelf", [written(tmp_path / "a.gguf")])
    return tmp_path / "shelf"


def test_a_vector_lies_under_its_weights_with_its_card_beside_it(shelf: Path) -> None:
    path = shelf / "vectors" / f"{WEIGHTS}.gguf"
    assert path.read_bytes() == (shelf.parent / "a.gguf").read_bytes()
    assert path.with_suffix(".md").read_text("utf-8") == "# a.gguf"
    assert len([*path.parent.iterdir()]) == 2


def test_another_of_the_same_weights_stands_beside_it_and_a_newer_one_in_its_place(
    shelf: Path,
) -> None:
    newer = replace(VECTOR, calibration={"prompts": 65})
    put = [written(shelf.parent / "b.gguf", OTHER), written(shelf.parent / "c.gguf", newer)]
    paths = publish(shelf, put)
    assert [path.name for path in paths] == [f"{WEIGHTS}-2.gguf", f"{WEIGHTS}.gguf"]
    other, found = map(read_vector, paths)
    assert [other.model, found.model] == [OTHER.model, MODEL]
    assert found.calibration == {"prompts": 65}


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
