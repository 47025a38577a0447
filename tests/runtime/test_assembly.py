"""What belongs together is loaded, and what does not is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from models import (
    DEMO,
    DEMO_MMPROJ,
    OPTIONS,
    last_states,
    steered,
    tapped,
    tokens_of,
    vector,
)
from templates import with_template
from thinking import ALWAYS

from mars_gguf.demo_model import VECTOR
from mars_gguf.errors import ModelError, VectorError
from mars_gguf.runtime.assembly import read_vectors, renew_context
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits
from mars_gguf.vectors import Vector


def test_a_vector_for_another_model_is_refused_naming_what_differs(small_llama: str) -> None:
    with pytest.raises(VectorError, match="n_embd"):
        steered(DEMO, vector(small_llama))
    given = vector(DEMO)
    other = replace(given, model=replace(given.model, quantization="Q8_0"))
    with pytest.raises(VectorError, match="quantization"):
        steered(DEMO, other)
    assert steered(DEMO, other, force=True).steerer.push.way == "inline"


def test_an_mmproj_that_does_not_belong_is_refused(tmp_path: Path, small_llama: str) -> None:
    (tmp_path / "part.gguf").write_bytes(Path(DEMO_MMPROJ).read_bytes()[:5000])
    for path, mmproj in (
        (small_llama, DEMO_MMPROJ),
        (DEMO, DEMO),
        (DEMO, str(tmp_path / "part.gguf")),
    ):
        with pytest.raises(ModelError, match="belongs to this model"):
            steered(path, vector(path), mmproj=mmproj)
    with pytest.raises(ModelError, match="no such file"):
        steered(DEMO, mmproj=str(tmp_path / "none.gguf"))


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped model with a template that opens a thought."""
    return with_template(tmp_path_factory.mktemp("thinks") / "model.gguf", ALWAYS)


def measured(path: str, reasoning: str) -> Vector:
    given = vector(path)
    return replace(given, model=replace(given.model, reasoning=reasoning, chat_template_kwargs=""))


def test_a_context_that_cannot_be_made_is_told_from_a_file_that_is_broken() -> None:
    """llama.cpp quantizes no values without flash attention, and makes no such context."""
    options: Any = {"type_v": lib.GGML_TYPE_Q4_0, "flash_attn": False}
    with pytest.raises(ModelError, match=r"no context of n_ctx = 1024 .*a smaller n_ctx"):
        SteeredLlama(DEMO, vector=None, n_ctx=1024, verbose=False, **options)


def test_a_vector_measured_otherwise_is_refused_by_name(thinks: str) -> None:
    for before, asked, said in (
        ("answer", "off", "reasoning: the vector was made for answer, this model has off"),
        ("", None, "reasoning: the vector was made for none, this model has answer"),
        ("off", "thought", "reasoning: the vector was made for off, this model has thought"),
    ):
        given = measured(thinks, before)
        with pytest.raises(VectorError, match=said) as caught:
            steered(thinks, given, reasoning=asked)
        assert "Convert this model, or pass --force" in str(caught.value)
        forced = steered(thinks, given, reasoning=asked, force=True)
        assert forced.template.reasoning == (asked or "answer")
        forced.close()
    llama = steered(thinks, measured(thinks, "thought"))
    assert llama.template.reasoning == llama.fingerprint.reasoning == "thought"
    llama.close()


def test_prompts_of_other_code_are_refused_with_a_vector_of_a_model_that_thinks(
    thinks: str,
) -> None:
    with pytest.raises(
        ModelError, match="leave it out, and prompts are written by the model's own"
    ):
        steered(thinks, measured(thinks, "answer"), chat_format="chatml")
    with pytest.raises(ModelError, match="this model's chat template knows no thoughts"):
        tapped(DEMO, reasoning="answer", **OPTIONS)


def test_vectors_are_read_from_files_and_taken_as_they_are(tmp_path: Path) -> None:
    given, path = vector(DEMO, 5), str(VECTOR)
    read = partial(read_vectors, model_path=DEMO, arguments={}, force=False)
    found = read({"file": path, "made": given})
    assert list(found) == ["file", "made"] and found["made"] is given
    assert found["file"].layer == read(VECTOR)["mars"].layer
    assert read(None) == {}
    damaged = replace(given, geometry=replace(given.geometry, trust_limit=float("nan")))
    with pytest.raises(VectorError):
        read({"made": given, "damaged": damaged})


def test_loading_tells_its_progress_and_can_be_interrupted() -> None:
    shares: list[float] = []
    tapped(DEMO, progress=shares.append, **OPTIONS).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1.0

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tapped(DEMO, progress=interrupt, **OPTIONS)


def test_fields_without_a_keyword_reach_the_context() -> None:
    given = {"n_seq_max": 2, "kv_unified": True}
    llama = tapped(DEMO, context_overrides=given, **OPTIONS)
    assert lib.llama_n_seq_max(llama.ctx) == 2
    assert lib.llama_n_ctx_seq(llama.ctx) == llama.n_ctx() == 512  # not half of it for each
    llama.close()


def test_a_renewed_context_is_empty_and_as_good_as_a_new_one() -> None:
    llama, fresh = tapped(DEMO, **OPTIONS), tapped(DEMO, **OPTIONS | {"n_ctx": 256})
    tokens = tokens_of(llama, "How do I make bread?")
    llama.eval(tokens)
    renew_context(llama, n_ctx=256)
    assert (llama.n_tokens, llama.n_ctx(), len(llama.input_ids)) == (0, 256, 256)
    assert last_states(llama, tokens).keys() == last_states(fresh, tokens).keys()
    assert np.array_equal(logits(llama), logits(fresh))
    for each in (llama, fresh):
        each.close()


def test_a_context_that_cannot_be_made_anew_is_an_error() -> None:
    llama = tapped(DEMO, **OPTIONS)
    llama.lora_path = "adapter.gguf"
    with pytest.raises(ModelError, match="LoRA adapter is lost .*: give n_ubatch 64 or more"):
        renew_context(llama, n_ubatch=64)
    llama.lora_path = None
    with pytest.raises(ModelError, match="could not make a context with n_seq_max 100000"):
        renew_context(llama, n_seq_max=100000)
    llama.close()
