from __future__ import annotations

from dataclasses import replace

import pytest
from vector_files import GEOMETRY, MODEL, VECTOR

from mars_gguf.errors import VectorError


@pytest.mark.parametrize(
    ("changed", "forced"),
    [({"name": "Other"}, True), ({"reasoning": "off"}, True), ({"n_embd": 5}, False)],
)
def test_a_vector_of_another_model_is_refused_with_what_helps(changed, forced):
    other = replace(MODEL, **changed)
    VECTOR.require_model(MODEL)
    with pytest.raises(VectorError, match="made for another model:\n  ") as caught:
        VECTOR.require_model(other)
    assert f"  {next(iter(changed))}: the vector was made for" in str(caught.value)
    assert ("--force" in str(caught.value)) == forced
    if forced:
        VECTOR.require_model(other, force=True)
    else:
        with pytest.raises(VectorError, match="made for another model"):
            VECTOR.require_model(other, force=True)


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


def test_a_policy_steers_as_the_vector_was_measured_and_knows_its_system_prompt():
    policy = replace(VECTOR, source={"system_prompt": "Be kind."}).policy("ours")
    assert (policy.name, policy.block, policy.geometry) == ("ours", 3, GEOMETRY)
    assert (policy.gate, policy.strength) == ("measured", None)
    assert VECTOR.policy().caution("Be kind.") is None
    assert policy.caution(" Be kind.\n") is None
    for system, word in (("Be brief.", "another"), (None, "none"), ("", "none")):
        assert f"and {word} is in use" in str(policy.caution(system))
