"""Whole processes: what is compared is the same work."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import few_prompts
from models import DEMO_MMPROJ
from subjects import subject

from lab.bench.processes import Processes
from lab.bench.subject import Asked
from mars_gguf.convert.choices import Prompts
from mars_gguf.demo_model import VECTOR
from mars_gguf.vectors import read_vector, write_vector


def test_conversions_of_other_modalities_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = read_vector(VECTOR)
    g = full.geometry
    kept = ({"text": found["text"]} for found in (g.shifts, g.spreads, g.thresholds))
    geometry = replace(g, **dict(zip(("shifts", "spreads", "thresholds"), kept, strict=True)))
    vectors = {"theirs.gguf": replace(full, geometry=geometry), "ours.gguf": full}

    def convert(self: Processes, command: list[str], output: Path) -> float:
        write_vector(vectors[output.name], output)
        return 3.0 if output.name == "theirs.gguf" else 1.0

    monkeypatch.setattr(Processes, "_seconds", convert)
    bench = Processes(subject(DEMO_MMPROJ), transformers=str(tmp_path))
    (f,) = bench.measure(Asked(["conversion-transformers"], 2))
    assert f.verdict == "not measured"
    assert "transformers measured text, ours text, image, video" in f.absent
    vectors["theirs.gguf"] = full
    (f,) = bench.measure(Asked(["conversion-transformers"], 2))
    assert f.samples == [3.0, 3.0] and "(text, image, video)" in f.note


def test_a_conversion_can_be_timed_again_and_again(tmp_path: Path) -> None:
    given = replace(subject(), prompts=Prompts(**few_prompts(tmp_path)))
    bench, output = Processes(given), tmp_path / "ours.gguf"
    command = [sys.executable, "-m", "mars_gguf.convert", *bench.convert_arguments(output)]
    assert all(bench._seconds(command, output) > 0 for _ in range(2))
