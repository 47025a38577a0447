"""Every text and every picture of a conversation reaches the prompt, whatever a template takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from models import assistant, film, picture, user
from tiny import FAMILIES, templates

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.formats import HANDLERS
from mars_gguf.reasoning import KNOWN, Markers
from mars_gguf.runtime.template import CHATML, MARKER, ChatTemplate, chat_template

SYSTEM = {"role": "system", "content": "You are kind to cats."}
FORMS = {"strings": {"string"}, "parts": {"parts"}, "both": {"string", "parts"}}
JOINS = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WRITES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% else %}[{{ p.type }}]{% endif %}{% endfor %}\n{% endfor %}assistant: "
)
BOTH = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\n{% endfor %}assistant: "
)
every_family = pytest.mark.parametrize("name", FAMILIES)


def of(name: str, **kwargs: Any) -> ChatTemplate:
    return ChatTemplate(FAMILIES[name].chat.template, **kwargs)


def conversation(*, system: bool) -> list[dict[str, Any]]:
    return [
        *[SYSTEM] * system,
        user("What is on the first picture?", picture(1)),
        assistant("A grey cat."),
        user("And on these two?", picture(2), picture(3)),
        assistant("Nothing at all."),
        film("What happens here?", picture(4), picture(5)),
    ]


@every_family
def test_every_text_and_every_picture_of_a_conversation_arrives_in_order(name: str) -> None:
    rendered = of(name).render(conversation(system=True))
    assert "kind to cats" in rendered.text  # some put it before the last question
    places = [
        rendered.text.index(text)
        for text in ("first picture", "grey cat", "these two", "Nothing", "happens")
    ]
    assert places == sorted(places)
    assert rendered.text.count(MARKER) == len(rendered.media) == 5
    assert [medium.film for medium in rendered.media] == [None, None, None, 0, 0]
    urls = [part["image_url"]["url"] for part in conversation(system=False)[0]["content"][:1]]
    assert rendered.media[0].url == urls[0]
    # A picture stands with the message that shows it.
    first = rendered.text.index(MARKER)
    assert first < rendered.text.index("grey cat")


@every_family
def test_it_is_learnt_from_the_template_what_it_takes(name: str) -> None:
    assert of(name).takes("user") == FORMS[FAMILIES[name].forms]


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        (JOINS, "strings"),
        (WRITES, "strings"),
        (PARTS, "parts"),
        (BOTH, "both"),
        (CHATML, "strings"),
    ],
)
def test_templates_that_join_write_out_or_walk_through_content(source: str, taken: str) -> None:
    template = ChatTemplate(source)
    assert template.takes("user") == template.takes("assistant") == FORMS[taken]
    text = template.render(conversation(system=True)).text
    assert text.count(MARKER) == 5
    assert "'type'" not in text


def test_messages_of_text_alone_may_be_parts_or_strings_whatever_is_taken() -> None:
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    for source, expected in ((JOINS, "<user>a\nb<assistant>"), (PARTS, "user: abassistant: ")):
        assert ChatTemplate(source).render([parts]).text == expected
    string = {"role": "user", "content": "a"}
    assert ChatTemplate(PARTS).render([string]).text == "user: aassistant: "
    assert ChatTemplate(JOINS).render([string]).text == "<user>a<assistant>"


def test_a_text_that_is_lost_is_an_error_that_names_it() -> None:
    no_system = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        PromptError, match=r"drops the text of messages\[0\] \(system: You are kind"
    ):
        ChatTemplate(no_system).render([SYSTEM, user("Hello.")])
    only_last = "{{ messages[-1].content }}"
    with pytest.raises(PromptError, match=r"messages\[0\] \(user: Hello"):
        ChatTemplate(only_last).render([user("Hello."), assistant("Tea."), user("Hello.")])
    assert ChatTemplate(only_last).render([user(" Hello. \n")]).text == " Hello. \n"


def test_what_an_assistant_thought_may_be_left_out() -> None:
    thinking = assistant("<think>Cats are nice.</think>\n\nA cat.")
    text = of("internvl-qwen3").render([user("What?"), thinking, user("And?")]).text
    assert "A cat." in text and "Cats are nice" not in text


def test_a_template_that_shows_no_text_or_no_pictures_is_refused() -> None:
    with pytest.raises(ModelError, match="shows no text"):
        ChatTemplate("fixed").render([user("Hello.")])
    first_word = (
        "{% for m in messages %}{{ m.content if m.content is string else m.content[-1].text }}"
    )
    template = ChatTemplate(first_word + "{% endfor %}")
    assert template.render([user("Hello.")]).text == "Hello."
    with pytest.raises(PromptError, match="shows 0 of the 1 pictures"):
        template.render([user("Hello.", picture(1))])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
        ({"role": "user", "content": ["text"]}, "str"),
        ({"content": "Hello."}, "no role"),
        (user(f"Look: {MARKER}"), "stands for pictures"),
        (user("What?", picture(1)) | {"role": "nobody"}, "refuses"),
    ],
)
def test_what_no_prompt_can_show_is_refused(message: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=said):
        of("pixtral").render([message])


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no ' + 'roles') }}", "{% if %}", "{{ 1 / 0 }}"]
)
def test_what_a_template_raises_is_said(source: str) -> None:
    with pytest.raises((PromptError, ModelError), match="template"):
        ChatTemplate(source).render([user("Hello.")])


def test_variables_reach_the_template_and_its_own_are_kept() -> None:
    dated = JOINS + "{% if today %} on {{ today }}{% endif %}"
    plain, quoted = ChatTemplate(dated), ChatTemplate(dated, kwargs={"today": "Monday"})
    question: Sequence[Any] = [user("What?")]
    assert quoted.render(question).text == plain.render(question).text + " on Monday"
    assert plain.render(question, today="Monday").text == quoted.render(question).text
    with pytest.raises(ModelError, match="messages cannot be set"):
        of("qwen35", kwargs={"messages": []})


def test_without_a_template_prompts_are_chatml() -> None:
    for name, metadata in ((None, {}), ("chatml", {"tokenizer.chat_template": JOINS})):
        template = chat_template(metadata, name, ("<s>", "</s>"), pictures=False, eos_id=2)
        assert template.render([user("Tea.")]).text == (
            "<|im_start|>user\nTea.<|im_end|>\n<|im_start|>assistant\n"
        )


def test_formats_of_llama_cpp_python_are_taken_by_name_and_others_refused() -> None:
    for name in HANDLERS:
        options: Any = {"pictures": True, "eos_id": 2}
        template = chat_template({}, name, ("", ""), **options)
        text = template.render([user("What?", picture(1)), assistant("Tea."), user("Why?")]).text
        assert text.index(MARKER) < text.index("Tea.") < text.index("Why?")
    with pytest.raises(
        ModelError, match=r"found 'vicuna', expected one of mtmd, chatml, llava-1-5"
    ):
        chat_template({}, "vicuna", ("", ""), **options)


def test_a_text_that_another_one_contains_must_arrive_by_itself() -> None:
    last = "{% for m in messages[-1:] %}{{ m.role }}: {{ m.content }}{% endfor %}"
    system = {"role": "system", "content": "Be kind."}
    with pytest.raises(PromptError, match=r"messages\[0\] \(system: Be kind"):
        ChatTemplate(last).render([system, user("Be kind. Why?")])
    first_part = (
        "{% for m in messages %}{{ m.role }}: "
        "{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
    )
    parts = [{"type": "text", "text": text} for text in ("Yes, yes?", "yes")]
    with pytest.raises(PromptError, match=r"messages\[0\] \(user: yes"):
        ChatTemplate(first_part).render([{"role": "user", "content": parts}])


def test_pictures_go_with_their_marks_where_a_template_changes_the_order_of_messages() -> None:
    """Pixtral's puts what the system says before the last question."""
    a, b = (user("", picture(n))["content"][0] for n in (1, 2))
    system = {"role": "system", "content": [{"type": "text", "text": "Look:"}, b]}
    late = (
        "{% for m in messages[1:] %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
        "{% for p in messages[0].content %}{{ p.text }}{% endfor %}"
    )
    question = {"role": "user", "content": [a, {"type": "text", "text": "What?"}]}
    rendered = ChatTemplate(late).render([system, question])
    assert [medium.url for medium in rendered.media] == [
        part["image_url"]["url"] for part in (a, b)
    ]
    twice = "{% for m in messages %}{{ m.content[0].text }}{{ m.content[0].text }}{% endfor %}"
    with pytest.raises(PromptError):
        ChatTemplate(twice).render([{"role": "user", "content": [a, b]}])


@pytest.mark.parametrize("role", ["tool", "function", "developer"])
def test_messages_of_other_roles_are_not_lost_either(role: str) -> None:
    told = [user("How warm is it?"), {"role": role, "content": "21 degrees"}]
    assert "21 degrees" in ChatTemplate(JOINS).render(told).text
    known = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}{% endfor %}"
    with pytest.raises(PromptError, match=rf"messages\[1\] \({role}: 21 degrees"):
        ChatTemplate(known).render(told)
    chatml = chat_template(
        {"tokenizer.chat_template": CHATML}, None, ("", ""), pictures=False, eos_id=2
    )
    with pytest.raises(PromptError, match=rf"messages\[1\] \({role}: 21 degrees"):
        chatml.render(told)  # llama-cpp-python's own code for this template


def test_a_message_that_only_calls_a_tool_has_no_text_and_is_not_lost() -> None:
    call = {"type": "function", "id": "1", "function": {"name": "thermometer", "arguments": "{}"}}
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    shows = JOINS.replace("m['content']", "(m['content'] ~ m['tool_calls'] | default(''))")
    text = ChatTemplate(shows).render([user("How warm?"), asks, user("And?")]).text
    assert "thermometer" in text and "None" not in text
    with pytest.raises(PromptError, match=r"messages\[1\] \(assistant: thermometer"):
        ChatTemplate(JOINS).render([user("How warm?"), asks, user("And?")])


@pytest.mark.parametrize(
    "content",
    [
        None,
        {"type": "text", "text": "Hello."},
        [{"type": "text", "content": "Hello."}],
        [{"type": "text", "text": None}],
        [{"type": "text", "text": ["Hello."]}],
        [{"type": "video", "video": []}],
        [{"type": "video", "video": "http://x/film.mp4"}],
        [{"type": "image_url", "image_url": {}}],
    ],
    ids=str,
)
def test_content_of_another_shape_is_refused_and_not_dropped(content: Any) -> None:
    with pytest.raises(PromptError, match=r"messages\[0\]: found"):
        ChatTemplate(BOTH).render([{"role": "user", "content": content}])
    tuples = {"role": "user", "content": tuple(user("What?", picture(1))["content"])}
    assert len(ChatTemplate(BOTH).render([tuples]).media) == 1


# Thoughts ----------------------------------------------------------------------------------------

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
    for source in (JOINS, PARTS, CHATML, templates.QWEN_3_VL.template):
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


@pytest.mark.parametrize("markers", KNOWN)
def test_earlier_thoughts_may_be_shown_or_left_out(markers: Markers) -> None:
    strips = "{% for m in messages %}{{ m.role }}: {{ m.content.split('CLOSE')[-1] }}\n{% endfor %}"
    for reply in (
        f"{markers.open}Cats.{markers.close}\n\nA cat.", f"Cats.{markers.close}A cat.", "A cat.",
    ):  # fmt: skip
        for source in (WRITES, strips.replace("CLOSE", markers.close)):
            text = ChatTemplate(source).render([user("What?"), assistant(reply), user("And?")]).text
            assert "A cat." in text and "And?" in text
    # One that never ended is nothing that a template must show.
    drops = "{% for m in messages %}{{ m.content.split('OPEN')[0] }}\n{% endfor %}"
    endless = assistant(f"{markers.open}Cats.")
    source = drops.replace("OPEN", markers.open)
    assert "And?" in ChatTemplate(source).render([user("What?"), endless, user("And?")]).text
