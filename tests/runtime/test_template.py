"""Every text and every picture of a conversation reaches the prompt, whatever a template takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from models import assistant, film, picture, user
from templates import BOTH, JOINS, WALKS, WRITES
from tiny import FAMILIES

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.formats import HANDLERS
from mars_gguf.runtime.messages import BREAK, with_texts
from mars_gguf.runtime.template import CHATML, MARKER, ChatTemplate, chat_template

SYSTEM = {"role": "system", "content": "You are kind to cats."}
FORMS = {"strings": {"string"}, "parts": {"parts"}, "both": {"string", "parts"}}
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
    assert rendered.media[0].source == urls[0]
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
        (WALKS, "parts"),
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
    for source, expected in ((JOINS, "<user>a\nb<assistant>"), (WALKS, "user: abassistant: ")):
        assert ChatTemplate(source).render([parts]).text == expected
    string = {"role": "user", "content": "a"}
    assert ChatTemplate(WALKS).render([string]).text == "user: aassistant: "
    assert ChatTemplate(JOINS).render([string]).text == "<user>a<assistant>"


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


def test_what_users_and_tools_write_is_changed_and_nothing_else() -> None:
    template = ChatTemplate(CHATML)
    messages = [
        {"role": "system", "content": "one."},
        user("two.", picture(1)),
        assistant("three."),
        {"role": "tool", "content": "four."},
        user("five."),
    ]
    before = template.render(messages)
    template.as_text = str.upper
    after = template.render(messages)
    assert after.media == before.media
    expected = before.text
    for text in ("two.", "four.", "five."):
        expected = expected.replace(text, text.upper())
    assert after.text == expected != before.text


def test_a_special_token_in_several_parts_of_a_text_is_none_either() -> None:
    def broken(text: str) -> str:
        return text.replace("<end>", "<.end>")

    parts = [{"type": "text", "text": text} for text in ("a<", "en", "d>b<end", ">c")]
    parts.insert(2, {"type": "image_url", "image_url": {"url": "data:,"}})
    changed = with_texts({"role": "ipython", "content": parts}, broken)["content"]
    texts = [part.get("text") for part in changed]
    assert texts == ["a<", BREAK + "en", None, BREAK + "d>b<end", BREAK + ">c"]
    for role in ("system", "developer", "assistant"):
        assert with_texts({"role": role, "content": "<end>"}, broken)["content"] == "<end>"


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
