"""How the prompts of checkpoints are written, by templates of every kind, with jinja2 alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from checkpoint_templates import HEAD, PART, PARTS, STRINGS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from models import picture

from mars_gguf.convert.checkpoint_template import CheckpointTemplate
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import ModelError

BOTH = (
    HEAD + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    f"{PART}{{% endfor %}}{{% endif %}}{{% endfor %}}"
)
QUESTION = Prompt("How do I bake bread?")


@dataclass
class Tokenizer:
    chat_template: Any

    @staticmethod
    def apply_chat_template(
        messages: Any, *, chat_template: str, tokenize: bool, **variables: Any
    ) -> str:
        environment = ImmutableSandboxedEnvironment()
        return environment.from_string(chat_template).render(messages=messages, **variables)


def template(source: Any, *, sees: bool = False, **kwargs: Any) -> CheckpointTemplate:
    processor = SimpleNamespace(chat_template=None) if sees else None
    return CheckpointTemplate("it", Tokenizer(source), processor, multimodal=sees, kwargs=kwargs)


@pytest.mark.parametrize("source", [STRINGS, PARTS, BOTH, {"default": BOTH, "tools": "none"}])
def test_a_text_is_given_to_the_template_as_it_takes_texts(source: Any) -> None:
    assert QUESTION.text in template(source).render(QUESTION)


@pytest.mark.parametrize("source", [PARTS, BOTH])
def test_pictures_and_frames_come_before_the_text(source: str) -> None:
    seeing = template(source, sees=True)
    assert seeing.render(QUESTION).endswith(f"user\n{QUESTION.text}")
    for medium in ("image", "video"):
        prompt = Prompt(QUESTION.text, (picture(1), picture(2)), medium=medium)
        assert seeing.render(prompt).endswith(f"user\n<image><image>{QUESTION.text}")


@pytest.mark.parametrize(
    ("source", "sees", "message"),
    [
        (None, False, "it: this model has no chat template, expected a chat model"),
        ({"tools": "none"}, False, "has no chat template"),
        ("hello", False, "cannot be used: it: the chat template loses the text 'Is this text"),
        ("{{ raise('no') }}", False, "cannot be used: it: the chat template fails: .*undefined"),
        ("{% if %}", False, "the chat template fails"),
        (STRINGS, True, "the chat template fails"),
        ("{{ messages[0].content[-1].text }}", True, "cannot be used: it shows no pictures"),
    ],
)
def test_templates_that_show_too_little_are_refused(source: Any, sees: bool, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        template(source, sees=sees)


def test_what_a_template_is_told_reaches_it_and_its_fingerprint() -> None:
    source = STRINGS + "{% if briefly %}In short:{% endif %}"
    for briefly in (True, False):
        told = template(source, briefly=briefly)
        assert ("In short" in told.render(QUESTION)) == briefly
    assert template(source, b=1, a=None).variables == '{"a": null, "b": 1}'
    assert template(source).variables == "{}"


def test_a_model_that_thinks_is_told_not_to() -> None:
    thought = "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    switched, unasked = template(STRINGS + thought), template(STRINGS + "<think>")
    assert switched.render(QUESTION).endswith("bread?<think></think>")
    assert unasked.render(QUESTION).endswith("bread?<think>\n</think>\n\n")
    assert switched.reasoning == unasked.reasoning == "off"
    assert template(STRINGS).reasoning == ""
    with pytest.raises(ModelError, match="found .* enable_thinking = True; .* without thoughts"):
        template(switched.source, enable_thinking=True)


def test_a_text_that_a_template_loses_is_named() -> None:
    choosy = template(HEAD + "{{ m.content if m.content | length > 9 else '' }}{% endfor %}")
    with pytest.raises(ModelError, match="the chat template loses the text 'Hello', expected"):
        choosy.render(Prompt("Hello"))
