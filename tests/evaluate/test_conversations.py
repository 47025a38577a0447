"""What stands before requests in conversations."""

from __future__ import annotations

from mars_gguf.convert.prompts import contexts
from mars_gguf.evaluate.conversations import BEFORE


def test_no_context_is_one_that_conversions_measure_in() -> None:
    measured = {m["content"] for context in contexts() for m in context.messages}
    assert measured
    said = [m["content"] for before in BEFORE.values() for m in before]
    assert not measured & set(said)
