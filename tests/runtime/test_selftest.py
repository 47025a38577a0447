"""What cannot be read or steered is refused when it is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import QUESTION, both_ways, complete, not_rewindable
from llama_cpp import Llama
from models import (
    DEMO,
    OPTIONS,
    random_llama,
    steered,
    tokens_of,
    vector,
)

from mars_gguf.errors import ModelError
from mars_gguf.runtime import pushing
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.tap import LayerOutput


@not_rewindable
def test_decoding_twice_is_refused_where_memory_cannot_rewind(model: str) -> None:
    with pytest.raises(ModelError, match="inline"):
        steered(model, way="cvec")


def test_a_model_of_two_blocks_is_steered_at_its_only_steerable_block(tmp_path: Path) -> None:
    path = random_llama(tmp_path / "two.gguf", n_layer=2)
    llama = steered(path, vector(path, 1))
    complete(llama, tokens_of(llama, QUESTION), 1)
    assert llama.last_steering is not None
    assert llama.last_steering.layer == 1


@both_ways
def test_a_push_that_changes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(LayerOutput, "write", lambda *_: None)
    monkeypatch.setattr(pushing, "_set", lambda *_: None)
    with pytest.raises(ModelError, match=r"cannot be steered at block 2: .*chang"):
        steered(DEMO, way=way)


def test_a_token_that_is_sampled_past_the_steerer_is_noticed() -> None:
    class Bypassed(SteeredLlama):
        sample = Llama.sample  # type: ignore[assignment]

    with pytest.raises(ModelError, match="in a way that is not hooked"):
        Bypassed(DEMO, vector=vector(DEMO), **OPTIONS)


def test_what_was_tried_leaves_nothing_in_the_context() -> None:
    llama = steered(DEMO, {"a": vector(DEMO, 2), "b": vector(DEMO, 5)})  # type: ignore[arg-type]
    assert (llama.n_tokens, llama.context.memory.n_held, llama.context.steered_at) == (0, 0, None)
    assert llama.last_steering is None and not llama.context.marks.shown
