from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from vector_files import MODEL

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
FULL = replace(MODEL, mmproj_sha256="90" * 32, reasoning="off")


@given(st.sets(st.sampled_from([f.name for f in fields(ModelFingerprint)])))
def test_force_forgives_other_weights_and_templates_and_no_other_shape(changed):
    other = replace(FULL, **{key: OTHER[key] for key in changed})
    for force, named in ((False, changed), (True, changed - FORGIVABLE)):
        assert set(FULL.differing(other, force=force)) == named
        lines = FULL.differences(other, force=force)
        assert {line.split(":")[0] for line in lines} == named
        for line in lines:
            key = line.split(":")[0]
            assert str(getattr(FULL, key))[:12] in line and str(OTHER[key])[:12] in line


@given(st.sets(st.sampled_from([k for k, v in OTHER.items() if isinstance(v, str)])))
def test_what_is_not_known_of_a_model_is_not_held_against_it(unknown):
    blank = replace(MODEL, **dict.fromkeys(unknown, ""))
    assert MODEL.differing(blank) == blank.differing(MODEL) == []


def test_whether_a_model_thinks_is_held_against_it_also_where_it_was_not_known():
    thinks = replace(MODEL, reasoning="answer")
    for one, other in ((MODEL, thinks), (thinks, MODEL)):
        assert one.differing(other) == ["reasoning"]
        assert one.differing(other, force=True) == []
