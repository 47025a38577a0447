"""Servers that the tests of this folder share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace

import models
import numpy as np
import pytest
from models import DEMO, DEMO_MMPROJ, OPEN
from servers import (
    ONE_THREAD,
    Server,
    running,
)

from mars_gguf import demo_model
from mars_gguf.vectors import read_vector, write_vector


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model, served with nothing but defaults, on one thread."""
    with running(tmp_path_factory.mktemp("server"), "--demo", *ONE_THREAD) as server:
        yield server


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random text model in which the word "clay" is no number."""
    model = models.RandomModel.llama(4)
    clay = model.field("tokenizer.ggml.tokens").index("Ġclay")
    model.weights["token_embd.weight"][clay] = np.nan
    return model.write(tmp_path_factory.mktemp("broken") / "broken.gguf")


@pytest.fixture(scope="session")
def configured(tmp_path_factory: pytest.TempPathFactory, broken: str) -> Iterator[Server]:
    """Models from a configuration file, three of which have their weights in common and the last is
    lost since; every permission given."""
    folder = tmp_path_factory.mktemp("configured")
    write_vector(models.vector(broken, layer=2, modalities=["text"]), folder / "broken.gguf")
    own = read_vector(demo_model.VECTOR)
    model = replace(own.model, chat_template_kwargs='{"enable_thinking": false}')
    write_vector(replace(own, model=model), folder / "own.gguf")
    always = models.vector(DEMO, layer=3, opens=OPEN)
    write_vector(replace(always, model=model), folder / "always.gguf")
    gone = shutil.copy(broken, folder / "gone.gguf")
    threads = {"n_threads": 1, "n_threads_batch": 1, "n_ctx": 512}
    pictures = {
        "model": DEMO,
        "mmproj": DEMO_MMPROJ,
        "chat_template_kwargs": {"enable_thinking": False},
        **threads,
    }
    always_file = str(folder / "always.gguf")
    content = {
        "api_key": "secret",
        "allow_client_control": True,
        "allow_private_media": True,
        "max_media_bytes": 100_000,
        "models": [
            pictures
            | {
                "model_alias": "pictures",
                "vector": str(folder / "own.gguf"),
                "vectors": {"always": always_file},
            },
            pictures | {"model_alias": "strict", "vector": always_file},
            pictures | {"model_alias": "plain", "vector": "none"},
            {"model": broken, "vector": str(folder / "broken.gguf"), "cache": True, **threads},
            {"model": str(gone), "vector": str(folder / "broken.gguf"), **threads},
        ],
    }
    (folder / "server.json").write_text(json.dumps(content))
    arguments = ["--config_file", str(folder / "server.json"), "--log-prompts"]
    with running(folder, *arguments, api_key="secret") as server:
        gone.unlink()
        yield server
