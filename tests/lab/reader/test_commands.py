"""The commands of the reader, on what is no model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["build", "neutral", "report", "suite"])
@pytest.mark.parametrize("text", [None, "no model"])
def test_what_is_no_model_is_said_in_a_sentence(
    name: str, text: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    if text is not None:
        path.write_text(text)
    files = [str(path), *[str(path)][: name in ("neutral", "suite")]]
    asked = [sys.executable, "-m", f"lab.reader.{name}", *files, "-o", str(tmp_path / "out")]
    ended = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {path}: no")
    assert not (tmp_path / "out").exists()
