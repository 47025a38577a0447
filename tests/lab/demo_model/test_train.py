from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

CHAIN = [  # a stage, the one that goes on from it, and what that trains
    ("text", "imagine", "language_model"),
    ("vision", "align", "vision_tower"),
    ("imagine", "joint", "language_model"),
    ("joint", "converse", "language_model"),
    ("converse", "refer", "language_model"),
]


def test_a_stage_that_goes_on_has_the_rates_and_weights_that_it_would_have_had(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from lab.demo_model.train import Run

    def walk(resume: bool) -> dict[int, tuple[float, float]]:
        torch.manual_seed(0)
        modules = {"part": torch.nn.Linear(4, 4)}
        args = Namespace(seed=0, out=tmp_path, resume=resume, scale=1 / 3, float32=True)
        run = Run("text", args, modules, {"part": 1e-3})  # 300 steps
        seen = {}
        for step in run:
            generator = torch.Generator().manual_seed(step)
            run.update({"loss": modules["part"](torch.rand(2, 4, generator=generator)).sum()})
            total = float(modules["part"].bias.detach().sum())
            seen[step] = run.optimizers[0].param_groups[0]["lr"], total
            if step == 260:  # after the checkpoint at 250, before the end
                break
        return seen

    whole, rest = walk(False), walk(True)
    assert list(rest) == list(range(250, 261))
    assert all(rest[step] == whole[step] for step in rest)


def test_every_stage_trains_what_the_next_begins_with(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from safetensors.torch import load_file

    from lab.demo_model.train import STAGES, main

    main(["--out", str(tmp_path), "--scale", "1e-4", "--threads", "1"])  # a step of each
    last = {stage: load_file(tmp_path / f"{stage}.safetensors") for stage in STAGES}
    for earlier, stage, part in CHAIN:
        weights = {k: v for k, v in last[earlier].items() if k.startswith(part)}
        assert weights and any(not last[stage][key].equal(v) for key, v in weights.items()), stage
    fixed = [key for key in last["refer"] if not key.startswith("language_model")]
    assert fixed and all(last["refer"][key].equal(last["joint"][key]) for key in fixed)
