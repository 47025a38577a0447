from __future__ import annotations

from pathlib import Path

import pytest


def test_a_stage_that_goes_on_has_the_rates_and_weights_that_it_would_have_had(
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from lab.demo_model.train import Run

    def walk(resume: bool) -> dict[int, tuple[float, float]]:
        torch.manual_seed(0)
        modules = torch.nn.ModuleDict({"part": torch.nn.Linear(4, 4)})
        run = Run("text", tmp_path, modules, {"part": 1e-3}, 300, resume, "cpu")
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
