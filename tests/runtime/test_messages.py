"""Every text and every picture of the messages reaches the prompt, or an error names it."""

from __future__ import annotations

from typing import Any

import pytest
from models import assistant, film, picture, user
from templates import BOTH, JOINS, WRITES
from tiny import FAMILIES

from mars_gguf.errors import PromptError
from mars_gguf.reasoning import KNOWN, Markers
from mars_gguf.runtime.messages import each_isolated
from mars_gguf.runtime.template import CHATML, MARKER, ChatTemplate, chat_template


def test_a_text_that_is_lost_is_an_error_that_names_it() -> None:
    system = {"role": "system", "content": "You are kind to cats."}
    no_system = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        PromptError, match=r"drops the text of messages\[0\] \(system: You are kind"
    ):
        ChatTemplate(no_system).render([system, user("Hello.")])
    only_last = "{{ messages[-1].content }}"
    with pytest.raises(PromptError, match=r"messages\[0\] \(user: Hello"):
        ChatTemplate(only_last).render([user("Hello."), assistant("Tea."), user("Hello.")])
    assert ChatTemplate(only_last).render([user(" Hello. \n")]).text == " Hello. \n"


def test_what_an_assistant_thought_may_be_left_out() -> None:
    thinking = assistant("<think>Cats are nice.</think>\n\nA cat.")
    template = ChatTemplate(FAMILIES["internvl-qwen3"].chat.template)
    text = template.render([user("What?"), thinking, user("And?")]).text
    assert "A cat." in text and "Cats are nice" not in text


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
        ChatTemplate(FAMILIES["pixtral"].chat.template).render([message])


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
    assert [medium.source for medium in rendered.media] == [
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


A, B, C = (user("", picture(n))["content"][0] for n in (1, 2, 3))
WHAT = {"type": "text", "text": "What?"}
FILM = film("", picture(4), picture(5))["content"][0]
CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}


def said(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        ([said(WHAT)], []),
        ([said(A, WHAT)], []),
        ([said(A, B, WHAT)], [[A], [B]]),
        ([said(A, FILM, A, WHAT)], [[A], [FILM], [A]]),
        ([said(A), said(B, WHAT)], [[A], [B]]),
        # What earlier turns showed is left out; nothing of this one shows any: nothing is judged.
        ([said(A, WHAT), assistant("Tea."), said(B, WHAT)], [[B]]),
        ([said(A, B, WHAT), assistant("Tea."), said(WHAT)], []),
        # A reply that is to go on, and a call of a tool, end no turn.
        ([said(A, B, WHAT), assistant("Sure,")], [[A], [B]]),
        ([said(A, B, WHAT), CALLS, said(C, role="tool")], [[A], [B], [C]]),
        ([said(A, role="system"), said(B, WHAT)], [[A], [B]]),
    ],
)
def test_each_picture_of_the_last_turn_is_shown_alone_with_every_text(
    messages: list[dict[str, Any]], shown: list[list[dict[str, Any]]]
) -> None:
    found = list(each_isolated(messages, 16))
    assert [picture for picture, _ in found] == list(range(1, len(shown) + 1))
    for (_, alone), expected in zip(found, shown, strict=True):
        parts = [p for m in alone if isinstance(m["content"], list) for p in m["content"]]
        assert [part for part in parts if part["type"] != "text"] == expected
        assert sum(part == WHAT for part in parts) == sum(
            part == WHAT
            for m in messages
            if isinstance(m["content"], list)
            for part in m["content"]
        )
        assert [m["role"] for m in alone] == [m["role"] for m in messages]
        ChatTemplate(FAMILIES["smolvlm"].chat.template).render(
            [m for m in alone if m["role"] == "user"]
        )


def test_more_pictures_than_may_be_shown_alone_are_shown_in_groups() -> None:
    messages = [said(*(A for _ in range(10)), WHAT)]
    found = [
        (picture, len(alone[0]["content"]) - 1) for picture, alone in each_isolated(messages, 4)
    ]
    assert found == [(1, 2), (3, 3), (6, 2), (8, 3)]
