"""A projector that was constructed, once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from reader_inputs import TOKENS

from lab.reader.build import build
from lab.reader.projector import Gap


@pytest.fixture(scope="session")
def reader(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector for SmolLM2 that reads few tokens."""
    path = tmp_path_factory.mktemp("reader") / "mmproj.gguf"
    build(Path(smollm2), path, gap=Gap(), most=TOKENS, features=512)
    return path
