"""Requests in conversations, as `mars_gguf.evaluate --suite conversations` asks them."""

from __future__ import annotations

from collections import Counter

from mars_gguf.convert.prompts import contexts
from mars_gguf.evaluate.conversations import BEFORE, CONTEXTS
from mars_gguf.evaluate.suites import load_suite


def test_every_request_of_the_built_in_set_is_asked_in_every_context() -> None:
    text = [case for case in load_suite("builtin").cases if case.modality == "text"]
    cases = load_suite("conversations").cases
    assert len(cases) == len(text) * len(CONTEXTS) == len({case.id for case in cases})
    assert set(Counter(case.category for case in cases).values()) == {len(text)}
    by_request = {(case.category, case.request): case for case in cases}
    for case in text:
        for context in CONTEXTS:
            asked = by_request[context, case.prompt]
            assert (asked.kind, asked.group) == (case.kind, case.group)
            messages = asked.messages()
            assert messages[:-1] == list(BEFORE.get(context, ()))
            assert messages[-1]["content"].startswith(case.prompt)
    plain = by_request["no system prompt", text[0].prompt]
    assert plain.messages() == text[0].messages()


def test_a_few_of_them_are_of_every_context() -> None:
    cases = load_suite("conversations", limit=14).cases
    assert Counter((case.kind, case.category) for case in cases) == Counter(
        {(kind, c): 2 for kind in ("harmful", "harmless", "borderline") for c in CONTEXTS}
    )


def test_no_context_is_one_that_conversions_measure_in() -> None:
    measured = {m["content"] for context in contexts() for m in context.messages}
    assert measured
    said = [m["content"] for before in BEFORE.values() for m in before]
    assert not measured & set(said)
