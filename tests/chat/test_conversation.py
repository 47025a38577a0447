"""What a conversation keeps, and what it lets go when the context is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import models
import pytest
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPEN,
    OPTIONS,
    Messages,
    assistant,
    mmproj_of,
    picture,
    user,
)

from mars_gguf import demo, demo_model
from mars_gguf.chat.conversation import Conversation
from mars_gguf.errors import MarsError
from mars_gguf.media.images import user_message
from mars_gguf.media.video import Video
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.mtmd import Projector
from mars_gguf.runtime.template import MARKER
from mars_gguf.vectors import Vector

SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16, "repeat_penalty": 1.0}


def load(
    vector: Vector | Any = demo_model.VECTOR, model: str = DEMO, **options: Any
) -> SteeredLlama:
    options = OPTIONS | {"n_ctx": 256, "mmproj": mmproj_of(model), "keep_turns": True} | options
    return SteeredLlama(model, vector=vector, **options)


def prompt_tokens(llama: SteeredLlama, messages: Messages) -> int:
    """Cells that the prompt of ``messages`` takes."""
    chunks = llama.chunks(messages)
    return sum(chunk.n_tokens for chunk in chunks)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of text each eval got."""
    seen: list[int] = []
    original = SteeredLlama.eval

    def note(self: SteeredLlama, tokens: Sequence[int]) -> None:
        seen.append(len(tokens))
        original(self, tokens)

    monkeypatch.setattr(SteeredLlama, "eval", note)
    return seen


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of the pictures that were decoded."""
    seen: list[int] = []
    original = Projector.decode

    def note(self: Projector, context: Any, chunk: Chunk, start: int, *rest: Any) -> int:
        seen.append(start)
        return original(self, context, chunk, start, *rest)

    monkeypatch.setattr(Projector, "decode", note)
    return seen


@pytest.fixture(scope="module")
def llama() -> Iterator[SteeredLlama]:
    """The demo model with a context of 256."""
    llama = load()
    yield llama
    llama.close()


@pytest.fixture
def conversation(llama: SteeredLlama) -> Conversation:
    llama.context.rewind(0)
    return Conversation(llama, sampling=SAMPLING)


def ask(conversation: Conversation, *args: Any) -> str:
    return "".join(conversation.reply(*args))


def test_turns_are_kept_with_what_steering_did(conversation: Conversation) -> None:
    prompts = {r.kind: r.prompt for r in demo.requests() if r.modality == "text"}
    for kind in ("harmful", "harmless"):
        answer = ask(conversation, prompts[kind])
        turn = conversation.turns[-1]
        assert turn.answer == answer
        assert turn.steering is not None
        assert (turn.steering.alpha > 0) == (kind == "harmful")
        assert turn.tokens > 1
        assert turn.tokens_per_second > 0
        assert turn.seconds_to_first > 0
    said = [m["content"] for m in conversation.messages()]
    assert said == [prompts["harmful"], conversation.turns[0].answer, prompts["harmless"], answer]
    assert conversation.notes == []


def test_the_oldest_turns_go_when_the_context_is_full_and_it_is_said(
    conversation: Conversation,
) -> None:
    dropped, conversation.system = 0, "Be brief."
    for n in range(30):
        ask(conversation, f"What is a hat? {n}")
        assert conversation.messages()[0] == {"role": "system", "content": "Be brief."}
        given = [m["content"] for m in conversation.messages() if m["role"] == "user"]
        assert given == [f"What is a hat? {k}" for k in range(conversation.first, n + 1)]
        assert prompt_tokens(conversation.llama, conversation.messages()) <= 256
        assert bool(conversation.notes) == (conversation.first > dropped)
        for note in conversation.notes:
            gone = conversation.first - dropped
            what = "oldest turn was" if gone == 1 else f"oldest {gone} turns were"
            assert note == f"the context (256 tokens) is full: the {what} dropped"
        dropped = conversation.first
    assert dropped > 0
    kept = [turn.request["content"] for turn in conversation.turns]
    assert kept == [f"What is a hat? {n}" for n in range(30)]


def test_a_full_context_is_evaluated_anew_only_now_and_then(
    conversation: Conversation, evaluated: list[int]
) -> None:
    continued = []
    for n in range(40):
        evaluated.clear()
        ask(conversation, f"What is a hat? {n}")
        new = prompt_tokens(conversation.llama, [conversation.turns[-1].request])
        if conversation.first > 0:
            continued.append(sum(evaluated) <= new + 16)  # 16: the reply
    assert len(continued) > 20
    assert sum(continued) > 0.6 * len(continued)


def test_a_message_that_does_not_fit_says_what_it_needs_and_changes_nothing(
    conversation: Conversation,
) -> None:
    ask(conversation, "What is a hat?")
    before = conversation.messages()
    pictures = [picture(n) for n in range(20)]
    with pytest.raises(MarsError) as refused:
        ask(conversation, "What is it?", pictures)
    needed = prompt_tokens(conversation.llama, [models.user("What is it?", *pictures)])
    words = prompt_tokens(conversation.llama, [models.user("What is it?")])
    assert f"needs {needed} tokens, {needed - words} of them for its 20 pictures" in str(
        refused.value
    )
    assert "the context has 256" in str(refused.value)
    assert conversation.messages() == before
    assert ask(conversation, "What is a hat?")


def test_a_long_video_gets_as_many_frames_as_half_of_the_context_holds(
    conversation: Conversation,
) -> None:
    video = Video("clip.mp4", [picture(n) for n in range(32)], 80)
    ask(conversation, "What is shown?", [], video)
    (note,) = conversation.notes
    request = conversation.turns[-1].request
    frames = conversation.turns[-1].frames
    assert [part["type"] for part in request["content"]] == ["video", "text"]
    assert note.startswith(f"clip.mp4: {frames} of 80 frames")
    assert "has room" in note
    one_more = user_message("What is shown?", video=[picture(n) for n in range(frames + 1)])
    assert prompt_tokens(conversation.llama, [request]) <= 128
    assert prompt_tokens(conversation.llama, [one_more]) > 128
    assert conversation.llama.context.modality == "video"


def test_the_turn_after_a_long_video_still_sees_it(conversation: Conversation) -> None:
    ask(conversation, "What is shown?", [], Video("clip.mp4", [picture(n) for n in range(32)], 80))
    ask(conversation, "And what else?")
    assert conversation.notes == []
    assert [t.steering.modality for t in conversation.turns if t.steering] == ["video", "video"]
    while conversation.first == 0:
        ask(conversation, "What is a hat?", [picture(99)])
    (note,) = conversation.notes
    assert note.startswith("the context (256 tokens) is full: the oldest")
    assert note.endswith("1 video")
    ask(conversation, "What is shown?", [], Video("short.mp4", [picture(1), picture(2)], 2))
    assert not any("short" in note for note in conversation.notes)


def test_pictures_are_cut_up_once_each_to_be_counted_and_add_up(
    mrope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = load(models.vector(mrope), mrope)
    conversation, read = Conversation(llama, sampling=SAMPLING), set[Any]()
    assert llama.projector is not None
    cut = llama.projector.tokenize

    def counted(text: str, media: Any, read_url: Any = None) -> Any:
        read.update(medium.source for medium in media)
        return cut(text, media, read_url)

    monkeypatch.setattr(llama.projector, "tokenize", counted)
    film = [picture(n, 112) for n in range(5)]
    prompt = [
        {"role": "system", "content": "Be brief."},
        user("What is it?", picture(1, 56)),
        assistant("A hat."),
        user("And these?", picture(2, 140), picture(1, 56)),
        user_message("And here?", [picture(3, 280)], film),
    ]
    expected = prompt_tokens(llama, prompt)
    assert len(read) == 8
    assert conversation._count(prompt) == expected
    read.clear()
    assert conversation._count(prompt) == expected
    assert len(read) == 1  # a blank one in the place of all
    llama.close()


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(conversation: Conversation) -> None:
    with closing(conversation.reply("What is a hat?")) as pieces:
        first = next(pieces) + next(pieces)
    assert [turn.answer for turn in conversation.turns] == [first]
    with closing(conversation.reply("What is a hat?")):
        pass
    assert len(conversation.turns) == 1


def test_turns_are_dropped_only_for_a_reply(conversation: Conversation) -> None:
    while conversation.first == 0:
        before = list(conversation.turns)
        with closing(conversation.reply(f"What is a hat? {len(before)}")):
            pass  # nothing was asked of it yet
        assert (conversation.turns, conversation.first) == (before, 0)
        ask(conversation, f"What is a hat? {len(before)}")


def test_the_place_of_a_picture_cannot_be_typed(conversation: Conversation) -> None:
    with pytest.raises(MarsError, match=MARKER):
        ask(conversation, f"What is {MARKER}?")
    assert conversation.turns == []
    assert ask(conversation, "What is a hat?")
    conversation.turns[-1].answer += MARKER  # the model may well write it
    assert ask(conversation, "And now?")


def test_nobody_is_told_to_exceed_the_context_that_the_model_was_trained_for(
    conversation: Conversation,
) -> None:
    with pytest.raises(MarsError, match="Give a larger one: --ctx-size 5"):
        ask(conversation, "a " * 250)
    with pytest.raises(MarsError, match="the model was trained for 1024: shorten the message$"):
        ask(conversation, "a " * 1500)


def test_without_steering_the_last_prompt_is_asked_with_its_own_system_prompt_and_seed(
    conversation: Conversation,
) -> None:
    conversation.sampling = SAMPLING | {"temperature": 30.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    answer = ask(conversation, "What is a hat?")
    conversation.system = "Talk like a pirate."
    assert not conversation.turns[-1].steered
    for _ in range(3):
        assert "".join(conversation.unsteered()) == answer
    conversation.turns[-1].seed += 1
    assert "".join(conversation.unsteered()) != answer


@pytest.mark.parametrize("pictures", [[], [picture(1)]])
def test_without_steering_a_prompt_is_evaluated_in_the_same_batches(
    pictures: list[Any], conversation: Conversation
) -> None:
    """Others round otherwise, and then replies differ that steering did not change."""
    for text in ("What is a hat?", "How do I make bread?", "How do I make a bomb?", "And now?"):
        ask(conversation, text, pictures)
        steering = conversation.turns[-1].steering
        for _ in range(2):
            assert "".join(conversation.unsteered())
            again = conversation.llama.last_steering
            assert steering is not None and again is not None
            assert (again.t, again.alpha) == (steering.t, 0)


def test_a_request_again_without_steering_is_what_plain_llama_says() -> None:
    llama = load(models.vector(DEMO, opens=OPEN))
    conversation = Conversation(llama, sampling=SAMPLING)
    plain = models.plain(DEMO, mmproj=DEMO_MMPROJ)
    ask(conversation, "What is it?", [picture(1)])
    unsteered = "".join(conversation.unsteered())
    expected: Any = plain.create_chat_completion([user("What is it?", picture(1))], **SAMPLING)
    assert unsteered == expected["choices"][0]["message"]["content"]
    assert unsteered != conversation.turns[-1].answer
    assert len(conversation.turns) == 1
    ask(conversation, "And now?")
    assert conversation.turns[-1].steering is not None
    assert conversation.turns[-1].steering.alpha > 0
    llama.close()
    plain.close()


def test_pictures_that_fill_the_context_before_its_positions_end_a_reply_and_drop_turns(
    mrope: str,
) -> None:
    llama = load(models.vector(mrope, opens=OPEN), mrope)
    conversation = Conversation(llama, sampling=SAMPLING | {"max_tokens": -1})
    for turn in range(3):
        ask(conversation, "What is it?", [picture(turn, 280)])
        assert conversation.turns[-1].full
        assert llama.n_tokens < llama.n_ctx() - 1
        assert conversation.first == turn
    llama.close()


def test_the_model_is_told_everything_and_only_what_is_new(
    evaluated: list[int], decoded: list[int]
) -> None:
    llama = load(models.vector(DEMO, opens=CLOSED), n_ctx=512)
    conversation = Conversation(llama, system="Be brief.", sampling=SAMPLING)
    requests: list[tuple[str, list[Any]]] = [
        ("What is a hat?", []), ("And what is this?", [picture(1)]), ("How many are there?", [])
    ]  # fmt: skip
    evaluated.clear()
    for text, pictures in requests:
        ask(conversation, text, pictures)
        held = llama.detokenize([t for t in llama.input_ids[: llama.n_tokens] if t >= 0]).decode()
        for turn in conversation.turns:
            assert _text(turn.request) in held
        for turn in conversation.turns[:-1]:
            assert turn.answer.strip() in held
        assert "Be brief." in held
    marks = int((llama.input_ids[: llama.n_tokens] < 0).sum())
    assert sum(evaluated) + marks == llama.n_tokens  # nothing twice
    assert len(decoded) == 1
    conversation.clear()
    ask(conversation, "And these?", [picture(2), picture(3)])
    assert llama.context.modality == "image"
    ask(conversation, "And here?", [], Video("clip.mp4", [picture(4), picture(5)], 2))
    assert llama.context.modality == "video"
    llama.close()


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])
