"""Conversations with pictures: what is evaluated again, and that nothing else changes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import models
import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp
from mars_gguf.handlers import HANDLERS, conversation_handler, prepare, prompt_tokens
from models import CLOSED, DEMO, DEMO_MMPROJ, OPEN, OPTIONS, Messages, assistant, picture, user

from mars_gguf import hooks
from mars_gguf.errors import ModelError
from mars_gguf.runtime.llama import SteeredLlama

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "repeat_penalty": 1.0}
LIST_AS_TEXT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}<|im_start|>assistant\n"
)
JOINS_STRINGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}<|im_start|>assistant\n"
)


class Counting(SteeredLlama):
    """Notes how many tokens each eval gets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.evaluated: list[int] = []
        super().__init__(*args, **kwargs)

    def eval(self, tokens: Any) -> None:
        self.evaluated.append(len(tokens))
        super().eval(tokens)


def load(opens: float, name: str | None = None, **options: Any) -> Counting:
    handler = conversation_handler(DEMO_MMPROJ, name)
    llama = Counting(
        DEMO, vector=models.vector(DEMO, opens=opens), chat_handler=handler, **OPTIONS | options
    )
    prepare(llama, handler)
    return llama


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the pictures that llama.cpp was made to encode."""
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


def state(llama: SteeredLlama) -> bytes:
    """Everything llama.cpp keeps of the context's one sequence."""
    size = lib.llama_state_seq_get_size(llama.ctx, 0)
    buffer = (lib.ctypes.c_uint8 * size)()
    assert lib.llama_state_seq_get_data(llama.ctx, buffer, size, 0) == size
    return bytes(buffer)


FIRST = [user("What is it?", picture(1))]
SECOND = "How many are there?"


@pytest.fixture
def steered() -> Iterator[Counting]:
    llama = load(OPEN)
    yield llama
    llama.close()


def test_a_second_turn_evaluates_nothing_of_the_first_again(
    steered: Counting, encoded: list[int]
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
    assert len(encoded) == 2


def test_a_second_turn_is_the_same_to_the_bit_whether_the_first_was_steered_or_never(
    steered: Counting,
) -> None:
    answer = say(steered, FIRST)
    assert steered.last_steering is not None and steered.last_steering.alpha > 0
    second = [*FIRST, assistant(answer), user(SECOND)]
    never = load(CLOSED)
    say(never, FIRST, max_tokens=1)
    never.rewind(prompt_tokens(never, FIRST) - 1)
    never.vector = steered.vector
    replies = [say(llama, second) for llama in (steered, never)]
    assert replies[0] == replies[1]
    assert np.array_equal(logits_of(steered), logits_of(never))
    assert state(steered) == state(never)
    assert steered.last_steering.t == never.last_steering.t  # type: ignore[union-attr]
    never.close()


def test_what_is_continued_equals_what_is_evaluated_from_the_start_up_to_rounding(
    encoded: list[int],
) -> None:
    conversation, afresh = load(CLOSED), load(CLOSED)
    messages: Messages = []
    for turn in range(3):
        messages.append(user(f"{SECOND} {turn}", *([picture(turn)] if turn < 2 else [])))
        afresh.rewind(0)
        reply = say(conversation, messages)
        assert say(afresh, messages) == reply
        a, b = conversation.last_steering, afresh.last_steering
        assert a is not None and b is not None
        assert a.t == pytest.approx(b.t, abs=0.05)
        assert a.modality == b.modality == ("image" if turn == 0 else "video")
        messages.append(assistant(reply))
    assert len(encoded) == 2 + (1 + 2 + 2)
    conversation.close()
    afresh.close()


def test_another_picture_in_the_same_place_is_evaluated(
    steered: Counting, encoded: list[int]
) -> None:
    replies = [say(steered, [user("What is it?", picture(n))]) for n in (1, 2, 1)]
    assert len(encoded) == 3
    ts = []
    for n in (1, 2):
        steered.rewind(0)
        say(steered, [user("What is it?", picture(n))])
        ts.append(steered.last_steering.t)  # type: ignore[union-attr]
    assert ts[0] != ts[1]
    assert replies[0] == replies[2]


def test_the_same_prompt_twice_is_read_again_from_its_last_token(
    steered: Counting, encoded: list[int]
) -> None:
    first = say(steered, FIRST)
    steered.evaluated.clear()
    assert say(steered, FIRST) == first
    assert len(encoded) == 1
    assert steered.evaluated[0] == 1


def test_a_conversation_that_takes_another_turn_keeps_what_is_common(
    steered: Counting, encoded: list[int]
) -> None:
    say(steered, [*FIRST, assistant("One."), user("And what else?")])
    steered.evaluated.clear()
    changed = [*FIRST, assistant("Two."), user("And what else?")]
    reply = say(steered, changed)
    assert len(encoded) == 1
    afresh = load(OPEN)
    assert say(afresh, changed) == reply
    afresh.close()


def test_the_length_of_a_prompt_is_known_without_evaluating_it(
    steered: Counting, encoded: list[int]
) -> None:
    in_the_middle = user("", picture(1))
    in_the_middle["content"].insert(0, {"type": "text", "text": "Here is "})
    in_the_middle["content"][-1]["text"] = ". What is it?"
    alone = user("", picture(1), picture(2))
    for messages in (FIRST, [user("Hello.")], [alone], [in_the_middle]):
        counted = prompt_tokens(steered, messages)
        assert not encoded
        steered.rewind(0)
        reply: Any = steered.create_chat_completion(messages, **GREEDY)
        assert counted == reply["usage"]["prompt_tokens"]
        encoded.clear()


@pytest.mark.parametrize("template", [LIST_AS_TEXT, JOINS_STRINGS])
def test_templates_of_text_only_models_get_one_text_with_the_picture_in_it(template: str) -> None:
    llama = load(OPEN)
    handler: Any = llama.chat_handler
    llama.metadata["tokenizer.chat_template"] = template
    prepare(llama, handler.handler)
    say(llama, FIRST)
    marker = mtmd_cpp.mtmd_default_marker().decode()
    expected = f"<|im_start|>user\n{marker}\nWhat is it?<|im_end|>\n<|im_start|>assistant"
    assert handler.rendered == expected
    assert llama.last_steering is not None and llama.last_steering.modality == "image"
    llama.close()


@pytest.mark.parametrize(("template", "said"), [("", "no chat template"), ("fixed", "no pictures")])
def test_a_template_that_shows_no_pictures_is_refused(template: str, said: str) -> None:
    llama = load(OPEN)
    handler: Any = llama.chat_handler
    llama.metadata["tokenizer.chat_template"] = template
    with pytest.raises(ModelError, match=said):
        prepare(llama, handler.handler)
    llama.close()


@pytest.mark.parametrize("name", HANDLERS)
def test_every_handler_takes_a_picture_and_a_second_turn(name: str, encoded: list[int]) -> None:
    llama = load(OPEN, name)
    messages = [user("What is it?", picture(1))]
    reply = say(llama, messages)
    assert llama.last_steering is not None and llama.last_steering.modality == "image"
    say(llama, [*messages, assistant(reply), user(SECOND)])
    assert llama.last_steering.modality == "image"
    assert len(encoded) == 1
    llama.close()


def test_a_memory_that_cannot_be_rewound_starts_every_turn_afresh(
    encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model here could be rewound: recurrent ones with an mmproj are too large for a test.
    llama = load(CLOSED)
    monkeypatch.setattr(llama, "memory_can_rewind", lambda: False)
    reply = say(llama, FIRST)
    say(llama, [*FIRST, assistant(reply), user(SECOND)])
    assert len(encoded) == 2
    llama.close()


def test_ctrl_c_while_a_picture_is_encoded_is_not_lost(
    steered: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = say(steered, FIRST)
    original = mtmd_cpp.mtmd_encode_chunk

    def interrupted(*args: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return int(original(*args))

    steered.rewind(0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            say(steered, FIRST)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert say(steered, FIRST) == expected
