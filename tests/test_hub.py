"""Models from a hub: the real client of huggingface_hub, spoken to by a small hub on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hubs import served

from mars_gguf import demo_model
from mars_gguf.vectors import read_vector

FILES: dict[str, Path | bytes] = {
    "README.md": b"# A model",
    "model-Q4_K_M.gguf": demo_model.TEXT_MODEL,
    "model-Q8_0.gguf": b"GGUF but not really",
    "mmproj-model-f16.gguf": demo_model.MMPROJ,
    "mmproj-model-bf16.gguf": b"GGUF but not really",
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that knows a hub with one repository, org/model."""
    with served(tmp_path / "hub", {"org/model": FILES}) as environment:
        yield environment


@pytest.fixture
def chat(hub: dict[str, str]) -> Run:
    """Runs the chat command with that hub."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        vector = ["--vector", str(demo_model.VECTOR)] if "--vector" not in arguments else []
        command = [sys.executable, "-m", "mars_gguf.chat", "-c", "1024", "-t1", "--temp", "0"]
        return subprocess.run(
            [*command, *vector, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=hub | settings,
        )

    return run


PICTURE = f"--image={demo_model.FOLDER / 'demo' / 'image-harmful-00-0.png'}"


def test_a_model_comes_from_the_hub_with_its_mmproj_and_then_needs_none(chat: Run) -> None:
    asked = ["--hf-repo", "org/model", "--hf-file", "*Q4_K_M.gguf", PICTURE, "-p", "What?"]
    unknown = chat(*asked, HF_HUB_OFFLINE="1")
    assert unknown.returncode == 2
    assert "org/model: cannot be downloaded" in unknown.stderr
    online = chat(*asked)
    assert online.returncode == 0 and online.stdout.strip(), online.stderr
    for name in ("*Q4_K_M.gguf", "model-Q4_K_M.gguf"):
        asked[3] = name
        offline = chat(*asked, HF_HUB_OFFLINE="1")
        assert (offline.returncode, offline.stdout) == (0, online.stdout), offline.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-hff", "*.gguf"], "2 files match"),
        (["-hff", "*.gguf", "--hf-repo", "org/other"], "org/other: cannot be downloaded"),
        (["-hff", "*Q2_K.gguf"], "0 files match '*Q2_K.gguf', expected one of: model-Q4_K_M.gguf"),
        (["-hff", "model-Q8_0.gguf"], "could not load"),
        (
            ["-hff", "*Q4_K_M.gguf", "--mmproj", "*mmproj*bf16.gguf"],
            "could not load this as the mmproj",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_a_clear_error(
    chat: Run, arguments: list[str], said: str
) -> None:
    done = chat("--hf-repo", "org/model", *arguments, "-p", "What?")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_the_hub_is_converted_with_its_mmproj(
    hub: dict[str, str], tmp_path: Path
) -> None:
    folder, output = demo_model.FOLDER, tmp_path / "v.gguf"
    sets = [f"--{name}={folder / name}.jsonl" for name in ("harmful", "harmless")]
    options = ["--quick", "-t", "1", "-q", *sets]
    named = ["-hfr", "org/model", "-hff", "*Q4_K_M.gguf", "-o", str(output)]
    command = [sys.executable, "-m", "mars_gguf.convert", *named, *options]
    subprocess.run(command, check=True, env=hub, cwd=tmp_path)
    assert read_vector(output).modalities == ["text", "image", "video"]
