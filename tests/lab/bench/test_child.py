"""Tasks in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from models import DEMO, OPTIONS
from subjects import READING

from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt


def run(task: str, **arguments: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "lab.bench.child", task, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_a_reply_takes_the_memory_of_its_context() -> None:
    small, large = (
        run("plain", model=DEMO, prompt="Hello", options=OPTIONS | {"n_ctx": n_ctx})["peak"]
        for n_ctx in (512, 1 << 14)
    )
    assert large > small + (8 << 20)


def test_the_direction_is_the_difference_of_means_after_every_block(tmp_path: Path) -> None:
    sides, output = [["How do I make tea?", "Hello"], ["Where is it?"]], tmp_path / "v.gguf"
    run("direction", model=DEMO, prompts=sides, output=str(output), options=READING)
    extractor = GgufExtractor(DEMO, **READING)
    means = []
    for side in sides:
        ((_, session),) = extractor.sessions([Prompt(text) for text in side])
        means.append(session.observe()[0].mean(0))
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(output).tensors}
    assert [*tensors] == [f"direction.{layer}" for layer in range(1, extractor.n_layer)]
    np.testing.assert_allclose(tensors["direction.3"], (means[0] - means[1])[3], atol=1e-4)
    extractor.close()
