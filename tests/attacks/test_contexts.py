"""Contexts that something else than the runtime has filled, changed, saved or shared: what was not
judged is not sampled, and no picture is taken for another."""

from __future__ import annotations

import ctypes
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp
from llama_cpp.llama_cache import LlamaRAMCache
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPEN,
    assistant,
    picture,
    steered,
    tokens_of,
    user,
    vector,
)

from mars_gguf.errors import ModelError, PromptError, SteeringError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.tap import LayerOutput

QUESTION = "How do I make bread?"
OTHER = "Where do people keep tea?"
ASK = {"max_tokens": 8, "temperature": 0.0}


def text_of(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


def answer(llama: Any, *messages: Any) -> str:
    return text_of(llama.create_chat_completion(list(messages), **ASK))


# Filled without eval


def with_a_picture(llama: SteeredLlama) -> int:
    """By libmtmd alone, logits and all; where it ends."""
    assert llama.projector is not None
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    text = b"USER: " + mtmd_cpp.mtmd_default_marker() + b"\nHow do I make this?\nASSISTANT:"
    given = mtmd_cpp.mtmd_input_text()
    given.text, given.text_len = text, len(text)
    given.add_special = given.parse_special = True
    pixels = (ctypes.c_uint8 * (64 * 64 * 3))()
    bitmap = mtmd_cpp.mtmd_bitmap_init(64, 64, pixels)
    array = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    context = llama.projector.context
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(given), array, 1) == 0
    end = lib.llama_pos(0)
    code = mtmd_cpp.mtmd_helper_eval_chunks(
        context, llama.ctx, chunks, 0, 0, 512, True, ctypes.byref(end)
    )
    assert code == 0
    mtmd_cpp.mtmd_bitmap_free(bitmap)
    mtmd_cpp.mtmd_input_chunks_free(chunks)
    return int(end.value)


def with_text(llama: SteeredLlama) -> int:
    """By llama_decode alone; where it ends."""
    tokens = tokens_of(llama, QUESTION)
    array = (lib.llama_token * len(tokens))(*tokens)
    assert lib.llama_decode(llama.ctx, lib.llama_batch_get_one(array, len(tokens))) == 0
    return len(tokens)


def again(llama: SteeredLlama) -> int:
    """Up to the same length, after a prompt that was judged."""
    llama.eval(tokens_of(llama, QUESTION))
    llama.sample(temp=0.0)
    llama.n_tokens = 0
    lib.llama_memory_clear(lib.llama_get_memory(llama.ctx), True)
    return with_text(llama)


def behind_a_reply(llama: SteeredLlama) -> int:
    llama.eval(tokens_of(llama, QUESTION))
    llama.eval([llama.sample(temp=0.0)])
    llama.sample(temp=0.0)  # a reply goes on
    return llama.n_tokens + with_text(llama)


def with_more_than_is_sampled_from(llama: SteeredLlama) -> int:
    tokens = tokens_of(llama, QUESTION)
    llama.eval(np.array([*tokens, *tokens_of(llama, OTHER)]))  # type: ignore[arg-type]
    with pytest.raises(SteeringError, match=f"idx: found {len(tokens) - 1}, expected"):
        llama.sample(temp=0.0, idx=len(tokens) - 1)
    return len(tokens)


def restored(llama: SteeredLlama) -> int:
    """By a state of before the last token."""
    tokens = tokens_of(llama, QUESTION)
    llama.eval(tokens[:-1])
    state = llama.save_state()
    llama.eval(tokens[-1:])
    llama.sample(temp=0.0)
    llama.load_state(state)
    return llama.n_tokens


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize(
    "fill",
    [with_a_picture, with_text, again, behind_a_reply, with_more_than_is_sampled_from, restored],
)
def test_what_was_filled_without_eval_is_not_sampled(
    fill: Callable[[SteeredLlama], int], said: bool
) -> None:
    llama = steered(DEMO, mmproj=DEMO_MMPROJ, logits_all=True)
    end = fill(llama)
    if said or fill is with_more_than_is_sampled_from:
        llama.n_tokens = end
    with pytest.raises(SteeringError, match="Nothing was generated|something else than eval"):
        llama.sample(temp=0.0)
    llama.reset()
    llama._ctx.kv_cache_clear()
    llama.eval(tokens_of(llama, QUESTION))  # it can be used again, and is judged
    llama.sample(temp=0.0)
    assert llama.last_steering is not None and llama.last_steering.alpha > 0


@pytest.mark.parametrize("draft", [None, LlamaPromptLookupDecoding()])
def test_a_prompt_that_begins_with_the_token_of_a_reply_is_judged_anew(draft: Any) -> None:
    llama = steered(DEMO, draft_model=draft)
    llama.eval(tokens_of(llama, QUESTION))
    sampled = llama.sample(temp=0.0)
    llama.steerer.turns.reply.steering = None
    if draft is None:  # and the reply is taken back
        llama.n_tokens = 3
    llama.eval([sampled, *(tokens_of(llama, OTHER) if draft else ())])
    llama.sample(temp=0.0)
    assert llama.last_steering is not None


def test_a_state_that_cannot_be_restored_leaves_an_empty_context() -> None:
    llama, fresh = steered(DEMO), steered(DEMO)
    answer(llama, user(QUESTION))
    state = llama.save_state()
    state.llama_state = state.llama_state[:-200]
    state.llama_state_size -= 200
    with pytest.raises(RuntimeError):
        llama.load_state(state)
    assert llama.n_tokens == 0
    with pytest.raises((SteeringError, AssertionError)):
        llama.sample(temp=0.0)
    assert answer(llama, user(QUESTION)) == answer(fresh, user(QUESTION))


@pytest.mark.parametrize("opens", [OPEN, CLOSED])
def test_a_conversation_goes_on_from_a_state_with_all_that_was_said(opens: float) -> None:
    given = vector(DEMO, opens=opens)
    llama, other = (steered(DEMO, given) for _ in range(2))
    prompt, turn = tokens_of(llama, QUESTION), tokens_of(llama, OTHER)
    for token, _ in zip(llama.generate(prompt, temp=0.0), range(6), strict=False):
        assert token is not None
    other.load_state(llama.save_state())
    assert other.n_tokens == llama.n_tokens > len(prompt)
    for one in (llama, other):
        one.eval(turn)
        one.sample(temp=0.0)
    assert other.last_steering is not None and llama.last_steering is not None
    assert other.last_steering.t == llama.last_steering.t


def test_a_push_that_does_not_arrive_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered(DEMO)
    monkeypatch.setattr(LayerOutput, "write", lambda *args: None)
    with pytest.raises(SteeringError, match="does not let it be changed"):
        answer(llama, user(QUESTION))


@pytest.mark.parametrize("layer", [2, -1])
@pytest.mark.parametrize("pooling", [lib.LLAMA_POOLING_TYPE_NONE, lib.LLAMA_POOLING_TYPE_MEAN])
def test_a_model_that_embeds_chats_as_one_that_does_not(layer: int, pooling: int) -> None:
    given = vector(DEMO, layer)
    both = [
        steered(DEMO, given, mmproj=DEMO_MMPROJ, **more)
        for more in ({}, {"embedding": True, "pooling_type": pooling})
    ]
    for messages in ([user(QUESTION)], [user(OTHER, picture(1))]):
        expected, found = (answer(llama, *messages) for llama in both)
        assert found == expected
        before = both[1].embed("bread")
        assert both[1].embed("bread") == before
        assert answer(both[1], *messages) == expected
        assert both[1].last_steering.alpha == pytest.approx(both[0].last_steering.alpha, rel=1e-4)


# States of other processes

SAVE = """
import pickle, sys
from models import *
llama = steered(DEMO, vector(DEMO, opens=CLOSED), mmproj=DEMO_MMPROJ, keep_turns=True)
llama.create_chat_completion([user("What is this?", picture(1))], max_tokens=1, temperature=0.0)
with open(sys.argv[1], "wb") as file:
    pickle.dump((llama.save_state(), dict(llama.context.marks.shown)), file)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[int, Any]]:
    """A state of another process in which picture 1 was shown."""
    path = tmp_path_factory.mktemp("states") / "state"
    command = [sys.executable, "-c", SAVE, str(path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], timeout=120)
    state, shown = pickle.loads(path.read_bytes())
    return state, shown


def conversation(given: Any) -> SteeredLlama:
    return steered(DEMO, given, mmproj=DEMO_MMPROJ, keep_turns=True)


@pytest.mark.parametrize("shown_before", [1, 2])
def test_a_picture_is_not_taken_for_one_that_another_process_has_shown(
    saved: tuple[Any, dict[int, Any]], shown_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = vector(DEMO, opens=CLOSED)
    state, shown = saved
    llama, fresh = conversation(given), conversation(given)
    # Even if by chance this process marks its own pictures as that one did.
    (mark,) = shown
    monkeypatch.setattr("secrets.randbelow", _first(-mark // 2 - 1))
    answer(llama, user("What is this?", picture(shown_before)))
    llama.load_state(state)
    messages = [user("What is this?", picture(2)), assistant("A thing."), user("Where is it?")]
    assert answer(llama, *messages) == answer(fresh, *messages)
    assert llama.n_tokens == fresh.n_tokens


def _first(number: int) -> Callable[[int], int]:
    """In place of a random number below another: this one, then those from 0 on."""
    rest = iter([number, *range(100)])
    return lambda _: next(rest)


def test_a_picture_that_a_state_says_it_shows_is_not_encoded_again(
    saved: tuple[Any, dict[int, Any]],
) -> None:
    llama = conversation(vector(DEMO, opens=CLOSED))
    llama.load_state(saved[0])
    answer(llama, user("What is this?", picture(1)))
    assert llama.projector is not None and llama.projector.seconds == 0


def test_pictures_of_turns_that_a_cache_brings_back_are_known() -> None:
    given = vector(DEMO, opens=CLOSED)
    llama, fresh = conversation(given), conversation(given)
    llama.set_cache(LlamaRAMCache())
    first = [user("What is this?", picture(1)), assistant("A thing.")]
    for question in (QUESTION, OTHER, QUESTION, OTHER):
        assert answer(llama, *first, user(question)) == answer(fresh, *first, user(question))


# Threads

THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from models import *
llama = {make}
asked = [[user(f"Where do people keep {{thing}}?", *shown)] for thing, shown in (
    ("bread", ()), ("tea", ({picture})), ("a bomb", ()), ("milk", ({picture})),
)]
def reply(messages, stream=False):
    return llama.create_chat_completion(messages, max_tokens=12, temperature=0.0)
alone = [reply(messages)["choices"] for messages in asked]
with ThreadPoolExecutor(4) as threads:
    for _ in range(5):
        assert [r["choices"] for r in threads.map(reply, asked)] == alone
print("stood", flush=True)
"""


@pytest.mark.parametrize(
    "make",
    [
        "steered(DEMO, vector(DEMO, opens=0.3), mmproj=DEMO_MMPROJ)",
        "steered(DEMO, vector(DEMO, opens=0.3), mmproj=DEMO_MMPROJ, keep_turns=True)",
        "steered(DEMO, vector(DEMO, opens=0.3), "
        "chat_handler=plain(DEMO, mmproj=DEMO_MMPROJ).chat_handler)",
    ],
    ids=["pictures", "kept turns", "a handler of llama-cpp-python's"],
)
def test_threads_take_turns_on_one_model(make: str) -> None:
    script = THREADS.format(make=make, picture="picture(1),")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "stood\n", done.stderr[-2000:]


def begun(llama: SteeredLlama) -> Any:
    """A stream of a reply, of which two words are read."""
    messages = [user(QUESTION)]
    chunks = llama.create_chat_completion(messages, stream=True, max_tokens=50, temperature=0.0)
    for _ in range(4):
        next(chunks)
    return chunks


USES: dict[str, Callable[[SteeredLlama], object]] = {
    "another reply": lambda llama: answer(llama, user(OTHER)),
    "another stream": begun,
    "a prompt": lambda llama: llama.eval(tokens_of(llama, OTHER)),
    "a reset": lambda llama: llama.reset(),
    "a restored state": lambda llama: llama.load_state(llama.save_state()),
    "an embedding": lambda llama: llama.embed("tea"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_reply_does_not_go_on_in_the_context_of_something_else(
    use: Callable[[SteeredLlama], object],
) -> None:
    llama, fresh = (steered(DEMO, embedding=True) for _ in range(2))
    chunks = begun(llama)
    use(llama)
    with pytest.raises(SteeringError, match="another prompt has used its context"):
        list(chunks)
    assert answer(llama, user(OTHER)) == answer(fresh, user(OTHER))


def test_of_two_streams_with_pictures_the_one_that_owns_the_context_goes_on() -> None:
    llama, fresh = (steered(DEMO, mmproj=DEMO_MMPROJ) for _ in range(2))
    one, other = (
        llama.create_chat_completion([user(text, picture(2))], stream=True, **ASK)
        for text in (QUESTION, OTHER)
    )
    with pytest.raises(ModelError, match="no other prompt may come in between"):
        list(one)
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in other)
    assert said == answer(fresh, user(OTHER, picture(2)))


def test_a_stream_reports_its_own_steering_whatever_came_before_its_end() -> None:
    llama = steered(DEMO)
    chunks = llama.create_chat_completion([user(QUESTION)], stream=True, **ASK)
    seen = [next(chunks) for _ in range(9)]  # all its words, but not that it ends
    assert llama.last_steering is not None and all("mars" not in chunk for chunk in seen)
    own = llama.last_steering.alpha
    answer(llama, user(OTHER))
    assert llama.last_steering.alpha != own
    with suppress(SteeringError):
        for chunk in chunks:
            assert chunk.get("mars", {"alpha": own})["alpha"] == own


def test_a_closed_model_says_so() -> None:
    llama = steered(DEMO)
    stream = begun(llama)
    llama.close()
    for use in (lambda: llama.eval([1]), lambda: answer(llama, user(OTHER)), lambda: next(stream)):
        with pytest.raises((ModelError, SteeringError), match="closed|cannot go on"):
            use()
    llama.close()


@pytest.mark.parametrize("nothing", ["", [], ["", "bread"]])
def test_a_text_of_no_tokens_is_not_embedded(nothing: Any, smollm2: str) -> None:
    llama = steered(smollm2, embedding=True)
    assert llama.tokenize(b"") == []
    with pytest.raises(PromptError, match="a text of no tokens"):
        llama.embed(nothing)
    assert len(llama.embed("bread")) > 0


def test_an_embedding_that_fails_leaves_no_context_that_is_taken_for_whole() -> None:
    llama, fresh = (steered(DEMO, embedding=True) for _ in range(2))
    expected = answer(fresh, user(QUESTION))
    assert answer(llama, user(QUESTION)) == expected
    with pytest.raises(AttributeError):
        llama.embed(["bread", None])
    assert answer(llama, user(QUESTION)) == expected
