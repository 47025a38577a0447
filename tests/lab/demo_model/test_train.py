from __future__ import annotations

from pathlib import Path

import pytest

CHAIN = [  # a stage, the one that goes on from it, and what that trains
    ("text", "imagine", "language_model"),
    ("vision", "align", "vision_tower"),
    ("imagine", "joint", "language_model"),
    ("joint", "converse", "language_model"),
    ("converse", "refer", "language_model"),
]


def test_every_stage_trains_what_the_next_begins_with(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from safetensors.torch import load_file

    from lab.demo_model.train import STAGES, main

    command = ["--out", str(tmp_path), "--scale", "1e-4", "--threads", "1"]  # a step of each
    main(command)
    last = {stage: load_file(tmp_path / f"{stage}.safetensors") for stage in STAGES}
    for earlier, stage, part in CHAIN:
        weights = {k: v for k, v in last[earlier].items() if k.startswith(part)}
        assert weights and any(not last[stage][key].equal(v) for key, v in weights.items()), stage
    fixed = [key for key in last["refer"] if not key.startswith("language_model")]
    assert fixed and all(last["refer"][key].equal(last["joint"][key]) for key in fixed)
    (tmp_path / "refer.safetensors").unlink()
    times = {stage: (tmp_path / f"{stage}.safetensors").stat().st_mtime for stage in STAGES[:-1]}
    main([*command, "--resume"])
    assert all((tmp_path / f"{s}.safetensors").stat().st_mtime == t for s, t in times.items())
    again = load_file(tmp_path / "refer.safetensors")
    assert all(again[key].equal(weight) for key, weight in last["refer"].items())
