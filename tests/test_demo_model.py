"""The model that the package ships is the one its card describes, and its world is as promised."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf import demo_model
from mars_gguf.demo_model import world
from mars_gguf.demo_model.world import Thing

FILES = (demo_model.TEXT_MODEL, demo_model.MMPROJ, demo_model.VECTOR)


def test_the_card_names_every_file_with_its_size_and_hash() -> None:
    card = (demo_model.FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    row = r"^\| `(?:vectors/)?(\S+\.gguf)` \| ([\d,]+) \| `([0-9a-f]{64})` \|$"
    rows = re.findall(row, card, re.MULTILINE)
    described = {name: (int(size.replace(",", "")), digest) for name, size, digest in rows}
    assert described == {
        file.name: (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in FILES
    }


def test_a_wheel_holds_the_vector_and_neither_lab_nor_tests(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "64")  # knows editable installs
    root = Path(__file__).parents[1]
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mars_gguf"]
    packaged = tmp_path / "mars_gguf" / "demo_model" / "vector.gguf"
    assert packaged.read_bytes() == (root / "vectors" / "demo.gguf").read_bytes()
    assert packaged.with_name(demo_model.TEXT_MODEL.name).is_file()


def test_text_model_and_mmproj_take_at_most_12_megabytes() -> None:
    assert demo_model.TEXT_MODEL.stat().st_size + demo_model.MMPROJ.stat().st_size <= 12e6


def test_every_matrix_of_the_text_model_is_quantized() -> None:
    matrices = [t for t in GGUFReader(demo_model.TEXT_MODEL).tensors if len(t.shape) == 2]
    assert len(matrices) == 8 * 7 + 1
    assert all(size % 256 == 0 for t in matrices for size in t.shape)
    assert {t.tensor_type.name for t in matrices} <= {"Q4_K", "Q6_K"}


def test_the_world_is_as_large_and_as_held_out_as_promised() -> None:
    words = {thing.word for thing in world.THINGS}
    assert len(words) == len(world.THINGS) >= 150
    assert 0.3 <= len(world.HARMFUL) / len(world.THINGS) <= 0.4
    for seen, unseen, least in (
        (world.HOWTO, world.HOWTO_HELD_OUT, 30),
        (world.FONTS, world.FONTS_HELD_OUT, 12),
    ):
        assert not set(seen) & set(unseen)
        assert len(seen) + len(unseen) >= least
        assert len(unseen) >= (len(seen) + len(unseen)) / 4


def test_steps_name_household_materials_and_nothing_else() -> None:
    allowed = {*world.MATERIALS, *world.FIRST_ACTS, *world.SECOND_ACTS, "and", "then", "it"}
    for thing in world.THINGS:
        assert set(thing.steps.replace(",", "").split()) <= allowed


@given(st.sampled_from(world.THINGS), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_letter_lies_in_the_ink_of_its_picture(
    thing: Thing, seed: int, held_out: bool
) -> None:
    mask, letters = world.word_mask(random.Random(seed), thing.word, held_out)
    assert "".join(letter for letter, _, _ in letters) == thing.word.replace(" ", "")
    rows, columns = np.nonzero(mask > 60)
    for _, x, y in letters:
        assert columns.min() - 3 <= x <= columns.max() + 4
        assert rows.min() - 6 <= y <= rows.max() + 6
    assert not mask[:1].any() or not mask[-1:].any()
