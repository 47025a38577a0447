"""How a template lets its model think, learnt from what it writes."""

from __future__ import annotations

from typing import Any

import pytest
from models import user
from templates import JOINS, WALKS
from tiny import templates

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.reasoning import KNOWN, Markers
from mars_gguf.runtime.template import CHATML, ChatTemplate

THINK, CHANNEL = KNOWN[:2]
HEAD = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
ASKED_FOR = HEAD + "{% if enable_thinking %}<think>{% endif %}"
DEEPSEEK = HEAD + "{{ '<think>' if thinking else '<think></think>' }}"
NO_SWITCH = HEAD + "{# <think> ... </think> #}"
THINKING = templates.QWEN_3_VL_THINKING.template


@pytest.mark.parametrize(
    ("source", "markers", "reasoning", "off", "on", "opened"),
    [
        (THINKING, THINK, "answer",
         "assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n", True),
        (templates.QWEN_3_5.template, THINK, "answer",
         "assistant\n<think>\n\n</think>\n\n", "assistant\n<think>\n", True),
        (templates.INTERNVL_QWEN_3.template, THINK, "answer",
         "assistant\n<think>\n\n</think>\n\n", "assistant\n", False),
        (templates.GLM_4_V.template, THINK, "answer",
         "<|assistant|>\n<think>\n</think>\n\n", "<|assistant|>\n<think>", True),
        (templates.GEMMA_4.template, CHANNEL, "off",
         "model\n<|channel>thought\n<channel|>", "model\n", False),
        (ASKED_FOR, THINK, "off", "<assistant>", "<assistant><think>", True),
        (DEEPSEEK, THINK, "off", "<assistant><think></think>", "<assistant><think>", True),
        (NO_SWITCH, THINK, "answer", "<assistant><think>\n</think>\n\n", "<assistant>", False),
    ],
)  # fmt: skip
def test_it_is_learnt_from_the_template_whether_the_model_thinks(
    source: str, markers: Markers, reasoning: str, off: str, on: str, opened: bool
) -> None:
    learnt = ChatTemplate(source)
    assert (learnt.thinks, learnt.reasoning) == (markers, reasoning)
    question = [user("What is 2 + 2?")]
    for asked, ends, leaves_open in (
        ("off", off, False), ("thought", on, opened), ("answer", on, opened),
    ):  # fmt: skip
        template = ChatTemplate(source, reasoning=asked)  # type: ignore[arg-type]
        rendered = template.render(question)
        assert (template.reasoning, rendered.begun) == (asked, leaves_open)
        assert rendered.text.partition("What is 2 + 2?")[2].endswith(ends)
        assert rendered.text.endswith(ends)
    same = ChatTemplate(source, reasoning=learnt.reasoning).render(question)
    assert learnt.render(question) == same


def test_templates_without_thoughts_have_no_reasoning() -> None:
    for source in (JOINS, WALKS, CHATML, templates.QWEN_3_VL.template):
        template = ChatTemplate(source, reasoning="answer")
        assert (template.thinks, template.reasoning) == (None, None)
        assert not template.render([user("<think>")]).begun


def test_a_thought_is_closed_with_the_spaces_that_the_template_puts_around_the_marker() -> None:
    shows = "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}"
    shows += "<think>{{ m.reasoning_content }}</think> {% endif %}{{ m.content }}\n{% endfor %}"
    template = ChatTemplate(shows + "assistant: <think>", reasoning="off")
    assert template.render([user("Tea?")]).text.endswith("assistant: <think></think> ")


@pytest.mark.parametrize("source", [THINKING, templates.QWEN_3_5.template, NO_SWITCH, ASKED_FOR])
@pytest.mark.parametrize(
    "text", ["<think>", "</think>", "<think>\n\n</think>\n\n", "a", "</think> <"]
)
def test_what_a_user_writes_opens_and_closes_no_thought(source: str, text: str) -> None:
    for reasoning in ("off", "answer"):
        template = ChatTemplate(source, reasoning=reasoning)  # type: ignore[arg-type]
        plain, written = (template.render([user(said)]) for said in ("What?", text))
        assert written.begun == plain.begun
        tail = plain.text.rpartition("What?")[2]
        assert written.text.endswith(tail) and text.strip() in written.text.removesuffix(tail)


@pytest.mark.parametrize("reasoning", ["off", "thought", "answer"])
@pytest.mark.parametrize("variables", [{"enable_thinking": True}, {"enable_thinking": False}])
def test_no_request_switches_thinking(reasoning: Any, variables: dict[str, bool]) -> None:
    template = ChatTemplate(templates.QWEN_3_5.template, reasoning=reasoning)
    assert template.render([user("What?")], **variables) == template.render([user("What?")])


def test_what_switches_it_in_another_way_is_refused() -> None:
    switched = HEAD + "{% if budget == 0 or '/no_think' in messages[-1].content %}"
    template = ChatTemplate(switched + "<think></think>{% else %}<think>{% endif %}")
    assert template.render([user("What?")], tools=[], other=1).begun
    for text, variables in (("What?", {"budget": 0}), ("What? /no_think", {})):
        with pytest.raises(
            PromptError, match="changes whether the model thinks: --reasoning answer"
        ):
            template.render([user(text)], **variables)


def test_variables_of_the_model_count_for_the_default() -> None:
    quiet = ChatTemplate(templates.QWEN_3_5.template, kwargs={"enable_thinking": False})
    assert quiet.reasoning == "off"
    assert quiet.render([user("What?")]).text.endswith("<think>\n\n</think>\n\n")


def test_a_variable_that_contradicts_the_reasoning_is_refused() -> None:
    with pytest.raises(ModelError, match="enable_thinking = False, but reasoning is 'answer'"):
        ChatTemplate(
            templates.QWEN_3_5.template, kwargs={"enable_thinking": False}, reasoning="answer"
        )
