"""The model that a chat is held with, and a picture to show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from models import DEMO, DEMO_MMPROJ, OPTIONS, picture

from mars_gguf import demo_model
from mars_gguf.runtime.llama import SteeredLlama


@pytest.fixture(scope="module")
def llama() -> Iterator[SteeredLlama]:
    llama = SteeredLlama(
        DEMO, vector=demo_model.VECTOR, mmproj=DEMO_MMPROJ, keep_turns=True, **OPTIONS
    )
    yield llama
    llama.close()


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.png"
    picture(1).save(path)
    return path
