"""The model that the package ships is the one its card describes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from gguf import GGUFReader

import mars_gguf
from mars_gguf import demo_model

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


def test_nothing_in_the_package_needs_the_lab() -> None:
    modules = Path(mars_gguf.__file__).parent.rglob("*.py")
    imports = re.compile(r"^\s*(?:from|import) lab\b", re.MULTILINE)
    assert not [path for path in modules if imports.search(path.read_text(encoding="utf-8"))]


def test_text_model_and_mmproj_take_at_most_12_megabytes() -> None:
    assert demo_model.TEXT_MODEL.stat().st_size + demo_model.MMPROJ.stat().st_size <= 12e6


def test_every_matrix_of_the_text_model_is_quantized() -> None:
    matrices = [t for t in GGUFReader(demo_model.TEXT_MODEL).tensors if len(t.shape) == 2]
    assert len(matrices) == 8 * 7 + 1
    assert all(size % 256 == 0 for t in matrices for size in t.shape)
    assert {t.tensor_type.name for t in matrices} <= {"Q4_K", "Q6_K"}
