"""What belongs together is loaded, and what does not is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from models import (
    DEMO,
    DEMO_MMPROJ,
    OPTIONS,
    steered,
    tapped,
    vector,
)
from templates import with_template
from thinking import ALWAYS

from mars_gguf.demo_model import VECTOR
from mars_gguf.errors import ModelError, VectorError
from mars_gguf.runtime.assembly import read_vectors
from mars_gguf.runtime.llama import SteeredLlama
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


def test_one_vector_of_several_that_does_not_belong_is_refused(small_llama: str) -> None:
    for given in ({"a": vector(DEMO), "b": vector(small_llama)}, {"b": vector(small_llama)}):
        with pytest.raises(VectorError, match="n_embd"):
            SteeredLlama(DEMO, vector=given, **OPTIONS)
    with pytest.raises(VectorError, match="none.gguf: no such vector file"):
        SteeredLlama(DEMO, vector={"a": vector(DEMO), "b": "none.gguf"}, **OPTIONS)


def test_vectors_are_read_from_files_and_taken_as_they_are(tmp_path: Path) -> None:
    given, path = vector(DEMO, 5), str(VECTOR)
    found = read_vectors({"file": path, "made": given})
    assert list(found) == ["file", "made"] and found["made"] is given
    assert found["file"].layer == read_vectors(VECTOR)["mars"].layer
    assert read_vectors(None) == {}
    damaged = replace(given, geometry=replace(given.geometry, trust_limit=float("nan")))
    with pytest.raises(VectorError):
        read_vectors({"made": given, "damaged": damaged})
