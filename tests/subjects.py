"""A subject for the benchmark: the demo model."""

from __future__ import annotations

from typing import Any

from models import DEMO, OPTIONS

from lab.bench.subject import Subject, demo_prompts
from mars_gguf.demo_model import VECTOR

READING: dict[str, Any] = {"n_threads": 1}


def subject(mmproj: str | None = None, repetitions: int = 2, **options: Any) -> Subject:
    prompts = demo_prompts(sees=mmproj is not None)
    options = OPTIONS | {"n_gpu_layers": 0} | options
    return Subject(DEMO, mmproj, str(VECTOR), options, repetitions, prompts)
