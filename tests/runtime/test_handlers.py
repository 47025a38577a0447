"""Conversations with pictures: what is evaluated again, and that nothing else changes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import llama_cpp
import models
import numpy as np
import pytest
from asking import FILM, chat, state
from llama_cpp import llama_chat_format, mtmd_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPEN,
    OPTIONS,
    Messages,
    assistant,
    picture,
    steer,
    user,
)

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits as logits_of

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "repeat_penalty": 1.0}


class Counting(SteeredLlama):
    """Notes how many tokens each eval gets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.evaluated: list[int] = []
        super().__init__(*args, **kwargs)

    def eval(self, tokens: Any) -> None:
        self.evaluated.append(len(tokens))
        super().eval(tokens)


def load(opens: float, name: str | None = None, **options: Any) -> Counting:
    given = models.vector(DEMO, opens=opens)
    return Counting(
        DEMO,
        vector=given,
        mmproj=DEMO_MMPROJ,
        template=name,
        force=True,
        keep_turns=True,
        **OPTIONS | options,
    )


def prompt_tokens(llama: SteeredLlama, messages: Messages) -> int:
    return sum(chunk.n_tokens for chunk in llama.chunks(messages))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the pictures that llama.cpp was made to decode."""
    seen: list[int] = []
    original = mtmd_cpp.mtmd_helper_decode_image_chunk

    def note(*args: Any) -> int:
        seen.append(int(args[4]))
        return int(original(*args))

    monkeypatch.setattr(mtmd_cpp, "mtmd_helper_decode_image_chunk", note)
    return seen


def say(llama: SteeredLlama, messages: Messages, **options: Any) -> str:
    reply: Any = llama.create_chat_completion(messages, **GREEDY | options)
    return str(reply["choices"][0]["message"]["content"])


FOREIGN = {
    "mtmd": MTMDChatHandler,
    "llava-1-5": llama_chat_format.Llava15ChatHandler,
    "llava-1-6": llama_chat_format.Llava16ChatHandler,
    "moondream": llama_chat_format.MoondreamChatHandler,
    "nanollava": llama_chat_format.NanoLlavaChatHandler,
    "obsidian": llama_chat_format.ObsidianChatHandler,
    "llama-3-vision-alpha": llama_chat_format.Llama3VisionAlphaChatHandler,
    "minicpm-v-2.6": llama_chat_format.MiniCPMv26ChatHandler,
    "qwen2.5-vl": llama_chat_format.Qwen25VLChatHandler,
}
FIRST = [user("What is it?", picture(1))]
SECOND = "How many are there?"


@pytest.fixture
def steered() -> Iterator[Counting]:
    llama = load(OPEN)
    yield llama
    llama.close()


def test_a_second_turn_evaluates_nothing_of_the_first_again(
    steered: Counting, decoded: list[int]
) -> None:
    answer = say(steered, FIRST)
    steered.evaluated.clear()
    longer = [*FIRST, assistant(answer), user(SECOND)]
    first = prompt_tokens(steered, FIRST)
    new = prompt_tokens(steered, longer) - first
    say(steered, longer, max_tokens=1)
    # Of the first prompt only the last token, which was steered; and the reply, which followed it.
    assert sum(steered.evaluated) == new + 1
    say(steered, [*longer, assistant("Two."), user("And here?", picture(2))])
    assert len(decoded) == 3  # the second one alone as well


def test_a_second_turn_is_the_same_to_the_bit_whether_the_first_was_steered_or_never(
    steered: Counting,
) -> None:
    answer = say(steered, FIRST)
    assert steered.last_steering is not None and steered.last_steering.alpha > 0
    second = [*FIRST, assistant(answer), user(SECOND)]
    never = load(CLOSED)
    say(never, FIRST, max_tokens=1)
    never.context.rewind(prompt_tokens(never, FIRST) - 1)
    steer(never, steered.vectors["mars"])
    replies = [say(llama, second) for llama in (steered, never)]
    assert replies[0] == replies[1]
    assert np.array_equal(logits_of(steered), logits_of(never))
    assert state(steered) == state(never)
    assert steered.last_steering.t == never.last_steering.t  # type: ignore[union-attr]
    never.close()


def test_the_length_of_a_prompt_is_known_without_evaluating_it(
    steered: Counting, decoded: list[int]
) -> None:
    in_the_middle = user("", picture(1))
    in_the_middle["content"].insert(0, {"type": "text", "text": "Here is "})
    in_the_middle["content"][-1]["text"] = ". What is it?"
    alone = user("", picture(1), picture(2))
    for messages in (FIRST, [user("Hello.")], [alone], [in_the_middle]):
        counted = prompt_tokens(steered, messages)
        assert not decoded
        steered.context.rewind(0)
        reply: Any = steered.create_chat_completion(messages, **GREEDY)
        assert counted == reply["usage"]["prompt_tokens"]
        decoded.clear()


def test_ctrl_c_while_a_picture_is_encoded_is_not_lost(
    steered: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = say(steered, FIRST)
    original = mtmd_cpp.mtmd_encode_chunk

    def interrupted(*args: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return int(original(*args))

    steered.context.rewind(0)
    assert steered.projector is not None
    steered.projector.forget()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            say(steered, FIRST)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert say(steered, FIRST) == expected


@pytest.mark.parametrize(
    "name", [n if n == "mtmd" else pytest.param(n, marks=pytest.mark.slow) for n in sorted(FOREIGN)]
)
def test_prompts_in_the_formats_of_llama_cpp_python_are_those_of_its_handlers(name: str) -> None:
    """The tokens and the pictures that its own handler evaluates, to the bit."""
    handler = FOREIGN[name](DEMO_MMPROJ, verbose=False)
    reference = llama_cpp.Llama(DEMO, chat_handler=handler, **OPTIONS)
    ours = models.steered(
        DEMO, models.vector(DEMO, opens=CLOSED), mmproj=DEMO_MMPROJ, template=name, force=True
    )
    messages = [*FIRST, assistant("A kite."), user(SECOND, picture(2))]
    for llama in (reference, ours):
        llama.create_chat_completion(messages, temperature=0.0, max_tokens=1)
    assert ours.n_tokens == reference.n_tokens
    assert np.array_equal(logits_of(ours), logits_of(reference))


def test_what_tools_and_formats_ask_for_is_done_as_llama_cpp_python_does_it() -> None:
    given = models.vector(DEMO, opens=CLOSED)
    ours, plain = (
        models.steered(DEMO, given, mmproj=DEMO_MMPROJ),
        models.plain(DEMO, mmproj=DEMO_MMPROJ),
    )
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    tool = {"type": "function", "function": {"name": "count", "parameters": schema}}
    chosen = {"type": "function", "function": {"name": "count"}}
    for extra in (
        {"tools": [tool], "tool_choice": chosen},
        {"functions": [tool["function"]], "function_call": {"name": "count"}},
        {"response_format": {"type": "json_object", "schema": schema}},
    ):
        replies: Any = [
            llama.create_chat_completion(FIRST, **GREEDY | extra) for llama in (ours, plain)
        ]
        messages = [reply["choices"][0]["message"] for reply in replies]
        for message in messages:
            message.pop("tool_calls", None)  # whose ids are random
        assert messages[0] == messages[1]
        assert messages[0].get("function_call") or json.loads(messages[0]["content"]) is not None


def test_replies_say_when_another_system_prompt_is_in_use_than_was_measured_under() -> None:
    given = models.vector(DEMO, opens=CLOSED)
    ours = models.steered(DEMO, replace(given, source={"system_prompt": "Be kind."}))

    def note(*before: Any, stream: bool = False) -> str | None:
        reply: Any = ours.create_chat_completion(
            [*before, user("Hello")], max_tokens=2, stream=stream
        )
        return (list(reply)[-1] if stream else reply)["mars"].get("note")

    same = {"role": "system", "content": "Be kind."}
    other = {"role": "system", "content": "Be brief."}
    assert note(same) is None
    for stream in (False, True):
        assert "'Be kind.', and none is in use" in str(note(stream=stream))
        assert "'Be kind.', and another is in use" in str(note(other, stream=stream))
    assert "note" not in models.steered(DEMO, given).create_chat_completion([user("Hello")])["mars"]


def test_a_handler_of_llama_cpp_python_that_shows_no_films_is_not_handed_one() -> None:
    handler = MTMDChatHandler(DEMO_MMPROJ, verbose=False)
    llama = models.steered(DEMO, chat_handler=handler)
    with pytest.raises(PromptError, match="shows no films"):
        chat(llama, FILM, 1)
    with pytest.raises(ModelError, match="not both"):
        models.steered(DEMO, chat_handler=handler, chat_template_kwargs={"a": 1})
