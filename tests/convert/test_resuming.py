"""What was measured, kept until the vector is written; test_pipeline.py goes on with it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.convert.extractor import Observation, Opening
from mars_gguf.convert.resuming import ResumeFile, code_sha256, require_ours
from mars_gguf.errors import MarsError


def seen(i: int, shape: tuple[int, ...] = (3, 2)) -> Observation:
    state = np.random.default_rng(i).normal(size=shape).astype(np.float32)
    return Observation(state, i, Opening(i, f"reply {i}\0\n'\U0001f642"))


@given(st.lists(st.integers(0, 99), unique=True), st.sampled_from([(1,), (4,), (3, 2)]))
def test_what_is_kept_is_found_to_the_bit_by_its_own_job_alone(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], shape: tuple[int, ...]
) -> None:
    path = tmp_path_factory.mktemp("measured") / "v.measured"
    kept = {str(i): seen(i, shape) for i in numbers}
    ResumeFile(path, "job").keep(kept)
    again, other = ResumeFile(path, "job"), ResumeFile(path, "another")
    found = again.find(["none", *kept])
    assert found.keys() == kept.keys()
    for key, one in kept.items():
        assert np.array_equal(found[key].state, one.state)
        assert found[key][1:] == one[1:]
    assert other.find([*kept]) == {}
    other.keep({key: seen(0) for key in kept})
    assert again.find([*kept]).keys() == kept.keys()


def test_whose_a_file_is_shows_in_its_tables(tmp_path: Path) -> None:
    ours, empty, others = (tmp_path / name for name in ("ours", "empty", "others"))
    ResumeFile(ours, "job").keep({"key": seen(1)})
    empty.touch()  # as one is that was killed at the start
    for path in (ours, empty, tmp_path / "none"):
        require_ours(path)
    assert not (tmp_path / "none").exists()
    with closing(sqlite3.connect(others)) as file:
        file.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(MarsError, match="others: cannot be used .*it holds something else"):
        require_ours(others)


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit on file sizes (RLIMIT_FSIZE)"
)
def test_a_full_disk_is_said_in_words_and_leaves_a_file_that_can_be_read(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from test_resuming import ResumeFile, MarsError, seen
resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10,) * 2)
measured = ResumeFile(Path(sys.argv[1]), "job")
try:
    for i in range(100):
        measured.keep({str(i): seen(i, (20, 50))})
except MarsError as error:
    print(i, error)
"""
    path = tmp_path / "v.measured"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.stderr == ""
    count, message = done.stdout.split(maxsplit=1)
    assert message.startswith(f"{path}: ")
    measured = ResumeFile(path, "job")
    assert len(measured.find([str(i) for i in range(100)])) == int(count) > 0


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name in ("a.py", "convert/b.py", "media/c.py", "runtime/d.c", "server/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["a.py", "convert/b.py", "media/c.py", "runtime/d.c"])
def test_a_change_of_code_that_decides_what_is_seen_is_noticed(package: Path, name: str) -> None:
    before = code_sha256.__wrapped__(package)
    (package / name).write_text("changed")
    changed = code_sha256.__wrapped__(package)
    (package / name).rename(package / name.replace("/", "/z"))
    assert len({before, changed, code_sha256.__wrapped__(package)}) == 2 + ("/" in name)


def test_a_change_elsewhere_or_of_what_is_compiled_is_none(package: Path) -> None:
    before = code_sha256.__wrapped__(package)
    (package / "server" / "e.py").write_text("changed")
    (package / "runtime" / "d.so").write_text("compiled")
    (package / "convert" / "__pycache__").mkdir()
    assert code_sha256.__wrapped__(package) == before
    assert len(code_sha256()) == 64
