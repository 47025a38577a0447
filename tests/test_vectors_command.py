"""The command ``mars-gguf vectors``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from vector_files import f32, gguf_file

from mars_gguf import demo_model


def run_command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mars_gguf.vectors", *arguments],
        capture_output=True, encoding="utf-8", env=os.environ | {"PYTHONUTF8": "1"} | settings,
    )  # fmt: skip


def test_the_command_ends_with_code_2_and_no_traceback_for_bad_files(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(gguf_file({"mars.spread.\x1b[2J": f32(1)}))
    for path in (tmp_path / "bad.gguf", tmp_path / "gone.gguf", tmp_path):
        done = run_command(str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {path}: ")
        assert "\x1b" not in done.stderr
        assert "Traceback" not in done.stderr


def test_what_is_published_is_found_by_the_model_that_it_was_made_for(tmp_path):
    folder, vector = tmp_path / "shelf", tmp_path / "v.gguf"
    shutil.copy(demo_model.VECTOR, vector)
    missing = run_command("publish", str(folder), str(vector))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"error: {vector}: no card beside it, expected v.md\n"
    vector.with_suffix(".md").write_text("a card")
    done = run_command("publish", str(folder), str(vector))
    assert (done.returncode, done.stderr) == (0, "")
    path = done.stdout.split()[1].rstrip(",")
    found = run_command("find", str(demo_model.TEXT_MODEL), MARS_VECTORS=str(folder))
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{path}\n", "")
    assert "model " in run_command(path).stdout
