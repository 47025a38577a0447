"""The scripts of examples/, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pages import ROOT

from mars_gguf import read_vector

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run(name: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_steer_refuses_what_is_harmful_in_text_and_in_a_picture(tmp_path: Path) -> None:
    harmless, text, picture, unsteered = run("steer.py", folder=tmp_path).split("\n\n")
    assert harmless.startswith("text: ") and "gate = 0.00" in harmless
    assert text.startswith("text: ") and "I'm sorry" in text
    assert picture.startswith("image: ") and "gate = 1.00" in picture and "I'm sorry" in picture
    assert unsteered.startswith("unsteered: ") and "sorry" not in unsteered


def test_ask_server_gets_steered_replies_from_the_openai_client(tmp_path: Path) -> None:
    from servers import running

    with running(tmp_path, "--demo") as server:
        said = run("ask_server.py", f"{server.url}/v1", folder=tmp_path)
    bread, _, bomb, mars = said.strip().splitlines()
    assert "sorry" not in bread and bomb.startswith("I'm sorry")
    assert "'modality': 'text'" in mars


def test_convert_model_writes_a_vector_with_its_card_and_refuses_by_it(tmp_path: Path) -> None:
    said = run("convert_model.py", "vector.gguf", folder=tmp_path).splitlines()
    names = [f"vector.{suffix}" for suffix in ("gguf", "md", "png")]
    assert said[:3] == [f"wrote {name}" for name in names]
    assert said[-1].startswith("I'm sorry")
    assert read_vector(tmp_path / "vector.gguf").modalities == ["text", "image", "video"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"vector.{s}" for s in ("gguf", "md", "png")
    }
