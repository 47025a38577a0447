"""A model behind the constructed projector, once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.reader.grid import Writer
from lab.reader.projector import known_tokens
from mars_gguf.convert.extract_gguf import GgufExtractor


@pytest.fixture(scope="session")
def seeing(smollm2: str, reader: Path) -> Iterator[GgufExtractor]:
    extractor = GgufExtractor(smollm2, str(reader))
    yield extractor
    extractor.close()


@pytest.fixture(scope="session")
def writer(reader: Path, seeing: GgufExtractor) -> Writer:
    return Writer(seeing.llama, known_tokens(reader))
