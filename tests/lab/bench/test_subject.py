"""Options reach every kind of model."""

from __future__ import annotations

import json
from pathlib import Path

from models import OPTIONS
from subjects import subject

from lab.bench.processes import Processes


def test_options_reach_every_kind_of_model() -> None:
    given = subject(
        template="chatml", chat_template_kwargs={"a": 1}, reasoning="off", way="auto", force=True,
        n_ubatch=64,
    )  # fmt: skip
    assert given.plain == OPTIONS | {"n_gpu_layers": 0, "n_ubatch": 64}
    assert given.reading == {
        "chat_handler": "chatml", "chat_template_kwargs": {"a": 1}, "n_threads": 1,
        "n_gpu_layers": 0, "reasoning": "off",
    }  # fmt: skip
    convert = Processes(given).convert_arguments(Path("v.gguf"))
    assert convert[convert.index("--chat-handler") + 1] == "chatml"
    assert json.loads(convert[convert.index("--chat-template-kwargs") + 1]) == {"a": 1}
    assert convert[convert.index("--reasoning") + 1] == "off"
