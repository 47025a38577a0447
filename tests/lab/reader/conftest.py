"""Models behind the constructed projector, and what is measured on them, once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from models import DEMO, DEMO_MMPROJ
from reader_inputs import (
    CONTEXTS,
    OPTIONS,
    Cut,
    contrast,
    media,
    no_bar,
    requests,
)

from lab.reader.grid import Writer
from lab.reader.projector import known_tokens
from lab.reader.states import (
    Seen,
    TailExtractor,
    measure,
)
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.extractor import observe
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.pipeline import measure as measure_vector
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.splits import Splits, split_prompts


@pytest.fixture(scope="session")
def seeing(smollm2: str, reader: Path) -> Iterator[GgufExtractor]:
    extractor = GgufExtractor(smollm2, str(reader))
    yield extractor
    extractor.close()


@pytest.fixture(scope="session")
def writer(reader: Path, seeing: GgufExtractor) -> Writer:
    return Writer(seeing.llama, known_tokens(reader))


@pytest.fixture(scope="session")
def plain() -> Iterator[Cut]:
    extractor = Cut(DEMO, DEMO_MMPROJ, n_threads=1)
    yield extractor
    extractor.close()


@pytest.fixture(scope="session")
def tails() -> Iterator[TailExtractor]:
    extractor = TailExtractor(DEMO, DEMO_MMPROJ, n_threads=1)
    yield extractor
    extractor.close()


@pytest.fixture(scope="session")
def splits() -> Splits:
    return split_prompts(contrast(), media(), CONTEXTS, OPTIONS.seed)


@pytest.fixture(scope="session")
def seen(tails: TailExtractor, splits: Splits) -> Seen:
    return measure(partial(observe, tails, advance=no_bar), splits, requests())


@pytest.fixture(scope="session")
def conversion(plain: Cut) -> Measurement:
    sets = PromptSets(contrast(), media(), CONTEXTS)
    return measure_vector(plain, sets, OPTIONS, source={}, progress=False)
