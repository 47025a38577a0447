"""``python -m mars_gguf.vectors``"""

from __future__ import annotations

import os
import subprocess
import sys

from vector_files import VECTOR, f32, gguf_file

from mars_gguf.files import sha256
from mars_gguf.vectors import write_vector
from mars_gguf.vectors.describe import describe


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mars_gguf.vectors", *arguments],
        capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"},
    )  # fmt: skip


def test_the_command_prints_what_a_vector_holds_and_its_identity(tmp_path):
    write_vector(VECTOR, tmp_path / "a.gguf")
    done = run_command(str(tmp_path / "a.gguf"))
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert "\n".join(lines) == describe(VECTOR)
    assert last.split() == ["sha256", sha256(tmp_path / "a.gguf")]


def test_the_command_ends_with_code_2_and_no_traceback_for_bad_files(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(gguf_file({"mars.spread.\x1b[2J": f32(1)}))
    for path in (tmp_path / "bad.gguf", tmp_path / "gone.gguf", tmp_path):
        done = run_command(str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {path}: ")
        assert "\x1b" not in done.stderr
        assert "Traceback" not in done.stderr
