"""The command."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from models import DEMO

from lab.bench.__main__ import main
from lab.bench.processes import Processes
from mars_gguf.demo_model import VECTOR

COMMAND = [sys.executable, "-m", "lab.bench"]
QUICK = ["--demo", "-t1", "--repetitions", "1"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def test_every_figure_is_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    names = ["first-token", "first-token-inline", "memory-runtime", "import"]
    done = bench(*QUICK, "--only", ",".join(names), "--json", str(file))
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    figures = {f["name"]: f for f in saved["figures"]}
    assert set(figures) == set(names)
    for name, f in figures.items():
        assert name in done.stdout
        assert f["verdict"] == "shown" and len(f["samples"]) == 1
    assert all(f["aim"] is None for f in figures.values())
    assert saved["aims"] in done.stdout and "too small a model to chat with" in saved["aims"]
    assert "torch and transformers are not imported" in figures["import"]["note"]
    assert figures["memory-runtime"]["values"]["plain"][0] > 10
    assert saved["model"]["files"].keys() == {
        "text-Q4_K_M.gguf", "mmproj-f16.gguf", VECTOR.name
    }  # fmt: skip
    assert saved["machine"]["cores"] >= 1 and saved["versions"]["llama-cpp-python"]


def test_check_fails_when_an_aim_is_missed_and_only_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = ["-m", DEMO, "--vector", str(VECTOR), *QUICK[1:], "--check", "--only", "memory-runtime"]
    for mebibytes, missed in ((31.0, False), (33.0, True)):
        peaks = iter([100.0, 100.0 + mebibytes])
        monkeypatch.setattr(Processes, "_peak", lambda self, task, peaks=peaks: next(peaks))
        with pytest.raises(SystemExit) if missed else nullcontext():
            main(chat)
        said = capsys.readouterr()
        assert ("aims missed: memory-runtime" in said.err) == missed
        assert f"{mebibytes} MiB" in said.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--demo", "--only", "speed"], "no figure speed"),
        (["--demo", "--repetitions", "0"], "expected 1 to"),
        (["--demo", "--json", "/"], "a folder, expected the name of a file"),
        (["-m", DEMO], "no vector"),
        (["-m", DEMO, "--vector", DEMO], "expected"),
        (["-m", "none.gguf", "--vector", str(VECTOR)], "none.gguf: no such file"),
    ],
)
def test_bad_input_is_a_clear_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
