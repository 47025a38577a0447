from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_files import GEOMETRY, MODEL, VECTOR

from mars_gguf.errors import VectorError
from mars_gguf.vectors import ModelFingerprint
from mars_gguf.vectors.fingerprint import FORGIVABLE

OTHER: dict[str, Any] = {
    "architecture": "qwen2",
    "name": "Other Chat",
    "n_layer": 9,
    "n_embd": 5,
    "quantization": "Q8_0",
    "chat_template_sha256": "12" * 32,
    "tokenizer_sha256": "34" * 32,
    "chat_template_kwargs": '{"enable_thinking": false}',
    "weights_sha256": "56" * 32,
    "mmproj_sha256": "78" * 32,
    "reasoning": "answer",
}
FULL = replace(VECTOR, model=replace(MODEL, mmproj_sha256="90" * 32, reasoning="off"))


@given(st.sets(st.sampled_from([f.name for f in fields(ModelFingerprint)])))
def test_force_forgives_other_weights_and_templates_and_no_other_shape(changed):
    model = replace(FULL.model, **{key: OTHER[key] for key in changed})
    for force, named in ((False, changed), (True, changed - FORGIVABLE)):
        if not named:
            FULL.require_model(model, force=force)
            continue
        with pytest.raises(VectorError, match="made for another model") as caught:
            FULL.require_model(model, force=force)
        message = str(caught.value)
        for key in OTHER:
            assert (f"  {key}: the vector was made for" in message) == (key in named)
        for key in named:
            assert str(getattr(FULL.model, key))[:12] in message
            assert str(OTHER[key])[:12] in message
        assert ("--force" in message) == (changed <= FORGIVABLE)


@given(st.sets(st.sampled_from([k for k, v in OTHER.items() if isinstance(v, str)])))
def test_what_is_not_known_of_a_model_is_not_held_against_it(unknown):
    blank = replace(MODEL, **dict.fromkeys(unknown, ""))
    VECTOR.require_model(blank)
    replace(VECTOR, model=blank).require_model(MODEL)


def test_a_vector_of_before_thoughts_is_refused_for_a_model_that_thinks():
    thinks = replace(MODEL, reasoning="answer")
    for vector, model in ((VECTOR, thinks), (replace(VECTOR, model=thinks), MODEL)):
        with pytest.raises(VectorError, match="reasoning: the vector was made for"):
            vector.require_model(model)
        vector.require_model(model, force=True)


def test_another_word_for_reasoning_is_refused():
    with pytest.raises(VectorError, match=r"mars.model.reasoning: found on, expected off, thought"):
        replace(VECTOR, model=replace(MODEL, reasoning="on")).check()


def test_a_vector_of_an_unknown_modality_is_refused():
    measured = {
        name: getattr(GEOMETRY, name) | {"smell": GEOMETRY.spreads["text"]}
        for name in ("spreads", "thresholds")
    }
    geometry = replace(GEOMETRY, shifts=GEOMETRY.shifts | {"smell": GEOMETRY.safe}, **measured)
    with pytest.raises(VectorError, match=r"mars.spread.\*: found \['smell'\], expected some of"):
        replace(VECTOR, geometry=geometry).check()


def test_another_system_prompt_than_was_measured_under_is_warned_of():
    vector = replace(VECTOR, source={"system_prompt": "Be kind."})
    assert VECTOR.other_system_prompt("Be kind.") is None
    assert vector.other_system_prompt(" Be kind.\n") is None
    for system, word in (("Be brief.", "another"), (None, "none"), ("", "none")):
        assert f"and {word} is in use" in str(vector.other_system_prompt(system))
