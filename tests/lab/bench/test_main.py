"""The command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ended
from models import DEMO

from mars_gguf.demo_model import VECTOR

COMMAND = [sys.executable, "-m", "lab.bench"]


QUICK = ["--demo", "-t1", "--repetitions", "1"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


def test_every_figure_is_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    names = [
        "first-token", "first-token-inline", "extraction-text", "extraction-images",
        "conversion-cvector", "conversion-transformers", "memory-runtime", "import",
    ]  # fmt: skip
    done = bench(*QUICK, "--only", ",".join(names), "--json", str(file))
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())
    figures = {f["name"]: f for f in saved["figures"]}
    assert set(figures) == set(names)
    for name, f in figures.items():
        assert name in done.stdout
        compared = name.startswith("conversion")
        assert f["verdict"] == ("not measured" if compared else "shown")
        assert len(f["samples"]) == (0 if compared else 1)
    assert "not measured" in done.stdout
    assert all(f["aim"] is None for f in figures.values())
    assert saved["aims"] in done.stdout and "too small a model to chat with" in saved["aims"]
    assert "torch and transformers are not imported" in figures["import"]["note"]
    assert figures["memory-runtime"]["values"]["plain"][0] > 10
    assert saved["model"]["files"].keys() == {
        "text-Q4_K_M.gguf", "mmproj-f16.gguf", VECTOR.name
    }  # fmt: skip
    assert saved["machine"]["cores"] >= 1 and saved["versions"]["llama-cpp-python"]


def generator(folder: Path, before: str) -> str:
    """A program with the arguments of cvector-generator."""
    program = folder / "generator"
    program.write_text(f'#!/bin/sh\n{before}\nfor output; do :; done\ntouch "$output"\n')
    program.chmod(0o755)
    return str(program)


def test_check_fails_when_an_aim_is_missed_and_only_then(tmp_path: Path) -> None:
    only = ["--only", "conversion-cvector", "--cvector-generator"]
    chat = ["-m", DEMO, "--vector", str(VECTOR), *QUICK[1:]]  # not known to be the demo's
    at_once = bench(*chat, "--check", *only, generator(tmp_path, "test -s ${14} || exit 3"))
    assert at_once.returncode == 1, at_once.stderr
    assert "aims missed: conversion-cvector" in at_once.stderr
    assert "missed" in at_once.stdout
    unmeasured = bench(*chat, "--check", "--only", "conversion-cvector,conversion-transformers")
    assert unmeasured.returncode == 0, unmeasured.stderr
    failing = bench(*QUICK, *only, generator(tmp_path, "echo no such luck >&2; exit 3"))
    assert failing.returncode == 2
    assert "returned 3: no such luck" in failing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--demo", "--only", "speed"], "no figure speed"),
        (["--demo", "--repetitions", "0"], "expected 1 to"),
        (["--demo", "--json", "/"], "a folder, expected the name of a file"),
        (["--demo", "--cvector-generator", "nowhere"], "nowhere: not a program"),
        (["--demo", "--transformers", "nowhere"], "no config.json there"),
        (["-m", DEMO], "no vector"),
        (["-m", DEMO, "--vector", DEMO], "expected"),
        (["-m", "none.gguf", "--vector", str(VECTOR)], "none.gguf: no such file"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: list[str], said: str) -> None:
    done = ended("lab.bench", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
