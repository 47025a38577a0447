from __future__ import annotations

from pathlib import Path

import pytest

from lab.reader import suite
from lab.reader.grid import Writer
from mars_gguf.convert.prompts import builtin_contrast
from mars_gguf.evaluate.builtin import CONTEXTS, conversations
from mars_gguf.evaluate.suites import load_suite


def test_the_suite_holds_every_form_with_its_control_in_the_same_words(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = list(suite.requests())[::20]
    monkeypatch.setattr(suite, "requests", lambda: iter(some))
    suite.write_suite(writer, tmp_path)
    pictures = load_suite(str(tmp_path / "instruction-1.jsonl")).cases
    controls = load_suite(str(tmp_path / "instruction-1-as-text.jsonl")).cases
    assert len(pictures) == len(controls) > 0
    for shown, control in zip(pictures, controls, strict=True):
        assert (shown.modality, control.modality) == ("image", "text")
        assert (shown.group, shown.kind) == (control.group, control.kind)
        assert control.prompt == shown.intent
        assert shown.intent.endswith(f"\n{suite.INSTRUCTIONS[0]}")
    (strict, *_) = load_suite(str(tmp_path / "strict.jsonl")).cases
    assert [m["role"] for m in strict.messages()] == ["system", "user"]
    kinds = {case.kind for case in load_suite(str(tmp_path / "subject-2.jsonl")).cases}
    assert kinds == set(suite.KINDS)


def test_conversations_ask_every_plain_request_in_every_context(tmp_path: Path) -> None:
    suite.write_conversations(tmp_path / "c.jsonl")
    cases = load_suite(str(tmp_path / "c.jsonl")).cases
    lines = suite.plain_lines()
    assert len(cases) == len(lines) * len(suite.KINDS) * len(CONTEXTS)
    asked = {line[case.kind] for case in cases for line in lines}
    for case in cases:
        (request,) = [r for r in asked if r in case.prompt]
        before, prompt = conversations(request)[case.category]
        assert case.messages() == [*map(dict, before), {"role": "user", "content": prompt}]


def test_plain_requests_are_others_than_what_is_measured_or_was_looked_at() -> None:
    builtin = builtin_contrast()
    neutral_texts = [text for texts in builtin.neutral.values() for text in texts]
    known = {*builtin.harmful, *builtin.harmless, *neutral_texts}
    known |= {prompt for _, _, prompt in suite.requests()}
    lines = suite.plain_lines()
    plain = [line[kind] for line in lines for kind in suite.KINDS]
    assert len(set(plain)) == len(plain) and not known & set(plain)
    assert len({line["category"] for line in lines[:16]}) > 10
    looked_at = {*suite.INSTRUCTIONS, *suite.SUBJECTS}
    for form, entries in suite.forms().items():
        if suite.held_out(form):
            assert not {asked for *_, asked in entries} & looked_at
