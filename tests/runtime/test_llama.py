from __future__ import annotations

import ctypes
import gc
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from llama_cpp import LogitsProcessorList
from llama_cpp.llama_cache import LlamaRAMCache
from llama_cpp.llama_chat_format import MTMDChatHandler
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPEN,
    OPTIONS,
    Messages,
    RandomModel,
    assistant,
    film,
    last_states,
    mmproj_of,
    opening_at,
    picture,
    plain,
    random_llama,
    steer,
    steered,
    tapped,
    tokens_of,
    user,
    vector,
)

from mars_gguf.errors import ModelError, PromptError, SteeringError, VectorError
from mars_gguf.runtime import pushing
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits as logits_of
from mars_gguf.runtime.tap import LayerOutput
from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.vectors import Vector

Logits = npt.NDArray[np.float32]

QUESTION = "How do I make bread, and where do people keep it?"
FOLLOW_UP = "Where do people keep tea?"
TEXT = [user(QUESTION)]
IMAGE = [user(QUESTION, picture(1))]
PICTURES = [user(QUESTION, picture(1), picture(2))]
FILM = [film(QUESTION, picture(1), picture(2))]
LONG = " ".join(f"Where do people keep {n} pots of tea?" for n in range(20))

every_model = pytest.mark.parametrize(
    "model", ["demo", "smollm2", "small_llama", "hybrid", "recurrent"], indirect=True
)
rewindable = pytest.mark.parametrize("model", ["demo", "smollm2", "small_llama"], indirect=True)
not_rewindable = pytest.mark.parametrize("model", ["hybrid", "recurrent"], indirect=True)
both_ways = pytest.mark.parametrize("way", ["cvec", "inline"])


class Recorder:
    """A logits processor that keeps the logits of every token, and dictates the reply if told
    to, so that replies of differently steered models can be compared token by token."""

    def __init__(self, forced: Sequence[int] = ()) -> None:
        self.forced = list(forced)
        self.rows: list[Logits] = []

    def __call__(self, _ids: npt.NDArray[np.intc], scores: Logits) -> Logits:
        self.rows.append(scores.copy())
        if len(self.rows) <= len(self.forced):
            scores = np.full_like(scores, -np.inf)
            scores[self.forced[len(self.rows) - 1]] = 0
        return scores


def options(recorder: Recorder, n: int) -> dict[str, Any]:
    return {
        "max_tokens": n, "temperature": 0.0, "logits_processor": LogitsProcessorList([recorder])
    }  # fmt: skip


def complete(
    llama: llama_cpp.Llama, prompt: Sequence[int], n: int = 5, forced: Sequence[int] = ()
) -> Logits:
    """Logits of the tokens of a reply, [n, n_vocab]."""
    recorder = Recorder(forced)
    llama.create_completion(list(prompt), **options(recorder, n))
    return np.stack(recorder.rows)


def chat(
    llama: llama_cpp.Llama, messages: Messages, n: int = 5, forced: Sequence[int] = ()
) -> tuple[Logits, Any]:
    recorder = Recorder(forced)
    reply = llama.create_chat_completion(messages, **options(recorder, n))
    return np.stack(recorder.rows), reply


def stream(llama: llama_cpp.Llama, messages: Messages, n: int = 5) -> tuple[Logits, list[Any]]:
    recorder = Recorder()
    chunks: Any = llama.create_chat_completion(messages, stream=True, **options(recorder, n))
    listed = list(chunks)
    return np.stack(recorder.rows), listed


def text_of(reply: Any) -> str:
    if isinstance(reply, list):
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in reply)
    return str(reply["choices"][0]["message"]["content"])


def words_of_demo() -> list[int]:
    return words(plain(DEMO, vocab_only=True))


def words(llama: llama_cpp.Llama, n: int = 5) -> list[int]:
    """Some tokens that no model would choose by itself: a reply to dictate."""
    return tokens_of(llama, "keep seven pots of paper tea near the old kite shop")[:n]


def control_vector(llama: llama_cpp.Llama, layer: int, addition: Logits | None) -> None:
    n_layer, n_embd = llama_cpp.llama_model_n_layer(llama.model), llama.n_embd()
    if addition is None:
        code = llama_cpp.llama_set_adapter_cvec(llama.ctx, None, 0, 0, 0, 0)
    else:
        buffer = np.zeros((n_layer - 1, n_embd), np.float32)
        buffer[layer - 1] = addition
        data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        code = llama_cpp.llama_set_adapter_cvec(
            llama.ctx, data, buffer.size, n_embd, 1, n_layer - 1
        )
    assert code == 0


def addition_for(given: Vector, alpha: float) -> Logits:
    r = (given.geometry.unsafe - given.geometry.safe).astype(np.float64)
    return (alpha * (r / np.linalg.norm(r))).astype(np.float32)


def steer_by_hand(llama: llama_cpp.Llama, given: Vector, alpha: float) -> None:
    """Take the last token of a plain Llama back and decode it alone under a control vector."""
    position = llama.n_tokens - 1
    token = int(llama.input_ids[position])
    llama.n_tokens = position
    control_vector(llama, given.layer, addition_for(given, alpha))
    llama.eval([token])  # removes the old entry itself
    control_vector(llama, given.layer, None)


def evaluated(llama: llama_cpp.Llama, *parts: Sequence[int]) -> llama_cpp.Llama:
    for part in parts:
        llama.eval(list(part))
    return llama


def expected_t(given: Vector, state: Logits, modality: str) -> float:
    g = given.geometry
    r = g.unsafe.astype(np.float64) - g.safe.astype(np.float64)
    return float((state - g.shifts[modality] - g.safe) @ r / (r @ r))


def alpha_of(llama: SteeredLlama) -> float:
    assert llama.last_steering is not None
    return llama.last_steering.alpha


# A closed gate changes nothing ---------------------------------------------------------------


@every_model
@both_ways
def test_a_closed_gate_leaves_text_completions_as_they_are_to_the_bit(model: str, way: str) -> None:
    reference = plain(model)
    try:
        llama = steered(model, vector(model, opens=CLOSED), way=way)
    except ModelError:
        assert way == "cvec"
        return
    prompt = tokens_of(reference, QUESTION)
    for tokens in (prompt, prompt + words(reference), prompt[:4], prompt[:4]):
        assert np.array_equal(complete(llama, tokens), complete(reference, tokens))
        assert alpha_of(llama) == 0.0


@every_model
def test_a_closed_gate_leaves_chats_as_they_are_to_the_bit_over_two_turns_and_streaming(
    model: str,
) -> None:
    reference, llama = plain(model), steered(model, vector(model, opens=CLOSED))
    streaming = steered(model, vector(model, opens=CLOSED))
    messages: Messages = list(TEXT)
    for question in (FOLLOW_UP, LONG[:200]):
        expected, reply = chat(reference, messages)
        for logits, ours in (chat(llama, messages), stream(streaming, messages)):
            assert np.array_equal(logits, expected)
            assert text_of(ours) == text_of(reply)
        messages += [assistant(text_of(reply)), user(question)]


@pytest.mark.parametrize("model", ["demo", "hybrid", "recurrent", "mrope", "gemma"], indirect=True)
@pytest.mark.parametrize("first", [TEXT, IMAGE, PICTURES], ids=["text", "image", "pictures"])
def test_a_closed_gate_leaves_image_chats_as_they_are_to_the_bit(
    model: str, first: Messages
) -> None:
    reference = plain(model, mmproj=mmproj_of(model))
    llama, streaming = (
        steered(model, vector(model, opens=CLOSED), mmproj=mmproj_of(model)) for _ in range(2)
    )
    messages: Messages = list(first)
    for content in (user(FOLLOW_UP), user(FOLLOW_UP, picture(3))):
        expected, reply = chat(reference, messages)
        for logits, ours in (chat(llama, messages), stream(streaming, messages)):
            assert np.array_equal(logits, expected)
            assert text_of(ours) == text_of(reply)
        messages += [assistant(text_of(reply)), content]


@pytest.mark.parametrize("model", ["demo", "small_llama", "hybrid", "recurrent"], indirect=True)
@pytest.mark.parametrize(
    "sizes", [{"n_batch": 16}, {"n_ubatch": 8}, {"n_batch": 32, "n_ubatch": 12}], ids=str
)
@pytest.mark.parametrize("layer", [1, -1])
def test_small_batches_are_read_at_the_last_token_and_left_alone(
    model: str, sizes: dict[str, Any], layer: int
) -> None:
    given = vector(model, layer, CLOSED)
    reference, llama = plain(model, **sizes), steered(model, given, **sizes)
    measuring = tapped(model, **OPTIONS | sizes)
    for length in (47, 48, 49):
        prompt = tokens_of(reference, LONG)[:length]
        state = last_states(measuring, prompt)[given.layer]
        llama.reset()
        reference.reset()
        assert np.array_equal(complete(llama, prompt, 3), complete(reference, prompt, 3))
        assert llama.last_steering is not None
        assert llama.last_steering.t == pytest.approx(expected_t(given, state, "text"), abs=1e-4)


def test_logits_of_all_tokens_are_kept_where_they_are_asked_for() -> None:
    reference = plain(DEMO, logits_all=True)
    llama = steered(DEMO, vector(DEMO, opens=CLOSED), logits_all=True)
    prompt = tokens_of(reference, QUESTION)
    for each in (reference, llama):
        each.create_completion(prompt, max_tokens=5, temperature=0.0)
    assert llama.n_tokens == reference.n_tokens > len(prompt)
    assert np.array_equal(llama.scores[: llama.n_tokens], reference.scores[: llama.n_tokens])


# The first token is steered, and it alone ----------------------------------------------------


@rewindable
@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize(
    "extra", [{}, {"logits_all": True}, {"n_batch": 16, "n_ubatch": 8}], ids=str
)
def test_a_steered_reply_is_what_plain_llama_gives_with_a_cache_steered_by_hand(
    model: str, layer: int, extra: dict[str, Any]
) -> None:
    given = vector(model, layer)
    llama = steered(model, given, way="cvec", **extra)
    by_hand, unsteered = plain(model, **extra), plain(model)
    prompt = tokens_of(llama, QUESTION)
    forced = words(llama)
    logits = complete(llama, prompt, forced=forced)
    steer_by_hand(evaluated(by_hand, prompt), given, alpha_of(llama))
    assert np.array_equal(logits, complete(by_hand, prompt, forced=forced))
    plainly = complete(unsteered, prompt, forced=forced)
    assert np.abs(logits[0] - plainly[0]).max() > 1
    # Nothing of the control vector is left in the context.
    for other in (llama, unsteered):
        other.reset()
        other._ctx.kv_cache_clear()
        llama_cpp.Llama.eval(other, prompt)
    if not extra:
        assert np.array_equal(logits_of(llama), logits_of(unsteered))


@every_model
def test_steering_within_the_pass_changes_the_last_row_and_nothing_else(model: str) -> None:
    given = vector(model)
    llama, by_hand = steered(model, given, way="inline"), tapped(model, **OPTIONS)
    prompt, forced = tokens_of(llama, QUESTION), words(llama)
    logits = complete(llama, prompt, forced=forced)
    addition = addition_for(given, alpha_of(llama))

    def visit(output: LayerOutput) -> None:
        last = output.n_rows - 1
        output.write(last, output.read(last) + addition)

    with by_hand.tap.visiting([given.layer], visit):
        by_hand.eval(prompt)
    assert np.array_equal(logits, complete(by_hand, prompt, forced=forced))


@rewindable
@pytest.mark.parametrize("layer", [1, -1])
def test_cvec_and_inline_agree_to_the_bit_when_only_the_last_token_is_evaluated(
    model: str, layer: int
) -> None:
    given, replies = vector(model, layer), []
    for way in ("cvec", "inline"):
        llama = steered(model, given, way=way)
        prompt = tokens_of(llama, QUESTION)
        llama.eval(prompt[:-1])
        replies.append(complete(llama, prompt, forced=words(llama)))
        assert llama.last_steering is not None
        assert llama.last_steering.way == way
        second = [*llama.input_ids[: llama.n_tokens].tolist(), *prompt]
        llama.eval(second[llama.n_tokens : -1])
        replies.append(complete(llama, second))
    assert np.array_equal(replies[0], replies[2])
    assert np.array_equal(replies[1], replies[3])


@pytest.mark.parametrize("model", ["demo", "mrope", "gemma"], indirect=True)
@pytest.mark.parametrize("messages", [IMAGE, PICTURES], ids=["image", "pictures"])
def test_a_steered_image_chat_is_what_a_cache_steered_by_hand_gives(
    model: str, messages: Messages
) -> None:
    given = vector(model)
    by_hand = plain(model, mmproj=mmproj_of(model))
    unsteered, _ = chat(by_hand, messages, 1)
    prompt = by_hand.input_ids[: by_hand.n_tokens].tolist()
    forced = words(by_hand)
    llama = steered(model, given, mmproj=mmproj_of(model), way="cvec")
    logits, _ = chat(llama, messages, forced=forced)
    steer_by_hand(by_hand, given, alpha_of(llama))
    expected = complete(by_hand, prompt, forced=forced)
    assert np.array_equal(logits, expected)
    assert np.abs(expected[0] - unsteered[0]).max() > 1


@pytest.mark.parametrize("model", ["demo", "hybrid", "mrope", "gemma"], indirect=True)
@pytest.mark.parametrize("messages", [IMAGE, PICTURES], ids=["image", "pictures"])
def test_an_image_chat_steered_within_the_pass_is_what_an_independent_callback_gives(
    model: str, messages: Messages
) -> None:
    given = vector(model)
    llama = steered(model, given, mmproj=mmproj_of(model), way="inline")
    forced = words(llama)
    logits, _ = chat(llama, messages, forced=forced)
    addition = addition_for(given, alpha_of(llama))
    handler = MTMDChatHandler(mmproj_of(model), verbose=False)
    by_hand = tapped(model, chat_handler=handler, **OPTIONS)

    def visit(output: LayerOutput) -> None:
        last = output.n_rows - 1
        output.write(last, output.read(last) + addition)

    # Every run of text is changed at its end, but what follows the last one is all that is seen.
    original, texts = by_hand.eval, sum(chunk.is_text for chunk in llama.chunks(messages))

    def eval_last_changed(tokens: Any) -> None:
        nonlocal texts
        texts -= 1
        if texts:
            original(tokens)
        else:
            with by_hand.tap.visiting([given.layer], visit):
                original(tokens)

    by_hand.eval = eval_last_changed  # type: ignore[method-assign]
    assert np.array_equal(logits, chat(by_hand, messages, forced=forced)[0])


@not_rewindable
def test_a_steered_image_chat_of_a_model_that_cannot_rewind_steers_the_last_row(model: str) -> None:
    given = vector(model)
    llama = steered(model, given, mmproj=mmproj_of(model))
    by_hand = steered(model, vector(model, opens=CLOSED), mmproj=mmproj_of(model))
    forced = words(llama)
    plainly, _ = chat(by_hand, IMAGE, forced=forced)
    for _ in range(2):
        logits, reply = chat(llama, IMAGE, forced=forced)
        assert (reply["mars"]["way"], reply["mars"]["modality"]) == ("inline", "image")
        assert np.abs(logits[0] - plainly[0]).max() > 1
        # The other rows, and so the state after them, are those of the unsteered pass.
        assert by_hand.last_steering is not None
        assert reply["mars"]["t"] == pytest.approx(by_hand.last_steering.t, abs=1e-4)
        text = tokens_of(llama, FOLLOW_UP)
        assert np.array_equal(complete(llama, text, 2), complete(steered(model, given), text, 2))


def test_a_gate_that_barely_opens_is_no_error(smollm2: str) -> None:
    for model, layer in ((smollm2, 13), (smollm2, -1), (DEMO, 3)):
        given = vector(model, layer, CLOSED)
        llama = steered(model, given)
        for length in (5, 14):
            prompt = tokens_of(llama, LONG)[:length]
            steer(llama, given)
            llama.reset()
            complete(llama, prompt, 1)
            assert llama.last_steering is not None
            t, spread = llama.last_steering.t, given.geometry.spreads["text"]
            for s in (1e-5, 1e-2):
                # ReLU((t - t_m) / sigma_m / ramp) = s
                geometry = opening_at(given.geometry, t - s * spread)
                steer(llama, replace(given, geometry=geometry))
                llama.reset()
                complete(llama, prompt, 1)
                assert llama.last_steering.gate == pytest.approx(s, rel=0.01)
                assert alpha_of(llama) > 0


# What comes after a steered reply ------------------------------------------------------------


@rewindable
def test_the_next_turn_starts_at_the_steered_position_from_unsteered_states(model: str) -> None:
    given = vector(model)
    llama, reference = steered(model, given, way="cvec"), plain(model)
    prompt, forced = tokens_of(llama, QUESTION), words(llama)
    complete(llama, prompt, forced=forced)
    second = [*prompt, *forced, *tokens_of(llama, FOLLOW_UP)]
    logits = complete(llama, second, forced=forced)
    evaluated(reference, prompt)
    reference.n_tokens = len(prompt) - 1
    evaluated(reference, second[len(prompt) - 1 :])
    steer_by_hand(reference, given, alpha_of(llama))
    assert np.array_equal(logits, complete(reference, second, forced=forced))


@rewindable
def test_what_was_steered_does_not_reach_an_unsteered_next_turn(model: str) -> None:
    given = vector(model)
    llama, reference = steered(model, given), plain(model)
    prompt, forced = tokens_of(llama, QUESTION), words(llama)
    complete(llama, prompt, forced=forced)
    steer(llama, vector(model, opens=CLOSED))
    second = [*prompt, *forced, *tokens_of(llama, FOLLOW_UP)]
    logits = complete(llama, second)
    evaluated(reference, prompt)
    reference.n_tokens = len(prompt) - 1
    assert np.array_equal(logits, complete(evaluated(reference, second[len(prompt) - 1 :]), second))


@not_rewindable
def test_a_model_that_cannot_rewind_starts_the_next_turn_afresh(model: str) -> None:
    given = vector(model)
    llama, fresh = steered(model, given), steered(model, given)
    prompt, forced = tokens_of(llama, QUESTION), words(llama)
    complete(llama, prompt, forced=forced)
    second = [*prompt, *forced, *tokens_of(llama, FOLLOW_UP)]
    assert np.array_equal(complete(llama, second), complete(fresh, second))
    assert np.array_equal(complete(llama, second), complete(fresh, second))


@every_model
def test_the_same_request_after_one_token_is_steered_the_same(model: str) -> None:
    given = vector(model)
    llama = steered(model, given)
    prompt = tokens_of(llama, QUESTION)
    runs, alphas = [], []
    for _ in range(4):
        runs.append(complete(llama, prompt, 1))
        alphas.append(alpha_of(llama))
    # The first run evaluates the prompt at once, the others its last token alone: rounding.
    assert alphas == pytest.approx([alphas[0]] * 4, rel=0.02)
    assert np.array_equal(runs[1], runs[2])
    assert np.array_equal(runs[1], runs[3])
    if llama.context.memory.rewinds:
        reference = evaluated(plain(model), prompt)
        steer_by_hand(reference, given, alphas[1])
        assert np.array_equal(runs[1], complete(reference, prompt, 1))
    else:
        assert np.array_equal(runs[0], runs[1])


@every_model
def test_appending_to_a_context_keeps_all_of_it(model: str) -> None:
    given = vector(model)
    llama, closed = steered(model, given), vector(model, opens=CLOSED)
    prompt, more = tokens_of(llama, QUESTION), tokens_of(llama, FOLLOW_UP)
    forced = words(llama)
    complete(llama, prompt, forced=forced)
    known = llama.input_ids[: llama.n_tokens].tolist()
    steer(llama, closed)
    next(iter(llama.generate(more, reset=False, temp=0.0)))
    assert llama.input_ids[: llama.n_tokens].tolist() == known + more
    reference = plain(model)
    if llama.context.memory.rewinds:
        evaluated(reference, prompt)
        reference.n_tokens = len(prompt) - 1
        evaluated(reference, [prompt[-1], *known[len(prompt) :], *more])
    else:
        evaluated(reference, known + more)
    assert np.array_equal(logits_of(llama), logits_of(reference))


@every_model
def test_saved_states_hold_nothing_steered(model: str) -> None:
    given = vector(model)
    llama = steered(model, given)
    prompt, forced = tokens_of(llama, QUESTION), words(llama)
    complete(llama, prompt, forced=forced)
    state = llama.save_state()
    assert state.n_tokens == len(prompt) - 1
    second = [*prompt, *forced, *tokens_of(llama, FOLLOW_UP)]
    expected = complete(llama, second)
    reloaded, elsewhere, reference = steered(model, given), plain(model), plain(model)
    reloaded.load_state(state)
    assert np.array_equal(complete(reloaded, second), expected)
    llama.load_state(state)
    assert np.array_equal(complete(llama, second), expected)
    # A plain Llama that loads it continues from unsteered states too.
    elsewhere.load_state(state)
    if llama.context.memory.rewinds:
        evaluated(reference, prompt)
        reference.n_tokens = len(prompt) - 1
        evaluated(reference, second[len(prompt) - 1 :])
    assert np.array_equal(complete(elsewhere, second), complete(reference, second))


@every_model
def test_the_completion_cache_holds_nothing_steered(model: str) -> None:
    given = vector(model)
    llama, fresh = steered(model, given), steered(model, given)
    llama.set_cache(LlamaRAMCache())
    prompt, forced = tokens_of(llama, QUESTION), words(llama)
    complete(llama, prompt, forced=forced)
    complete(llama, tokens_of(llama, LONG)[:40])
    closed = vector(model, opens=CLOSED)
    steer(llama, closed)
    steer(fresh, closed)
    second = [*prompt, *forced, *tokens_of(llama, FOLLOW_UP)]
    logits = complete(llama, second)
    reference = plain(model)
    if llama.context.memory.rewinds:
        evaluated(reference, prompt)
        reference.n_tokens = len(prompt) - 1
        evaluated(reference, second[len(prompt) - 1 :])
    assert np.array_equal(logits, complete(reference, second))


@every_model
def test_a_reset_forgets_what_was_steered(model: str) -> None:
    given = vector(model)
    llama, fresh = steered(model, given), steered(model, given)
    prompt = tokens_of(llama, QUESTION)
    complete(llama, prompt, forced=words(llama))
    llama.reset()
    other = tokens_of(llama, FOLLOW_UP)
    assert np.array_equal(complete(llama, other), complete(fresh, other))


@pytest.mark.parametrize("model", ["demo", "hybrid", "recurrent", "mrope", "gemma"], indirect=True)
@both_ways
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_abandoned_stream_does_not_disturb_the_next_request(
    model: str, way: str, taken: int
) -> None:
    given = vector(model)
    try:
        llama, fresh = (steered(model, given, mmproj=mmproj_of(model), way=way) for _ in range(2))
    except ModelError:
        assert way == "cvec"
        return
    prompt = tokens_of(llama, QUESTION)
    held: list[Iterator[Any]] = []
    for following in (PICTURES, IMAGE, TEXT):
        abandoned: Any = llama.create_completion(prompt, max_tokens=9, temperature=0, stream=True)
        for _ in range(taken):
            next(abandoned)
        held.append(abandoned)
        (ours, reply), (expected, _) = chat(llama, following), chat(fresh, following)
        assert np.array_equal(ours, expected)
        assert reply["mars"]["alpha"] == alpha_of(fresh)
    held.clear()
    gc.collect()
    assert np.array_equal(chat(llama, IMAGE)[0], chat(fresh, IMAGE)[0])


@pytest.mark.parametrize("model", ["demo", "smollm2"], indirect=True)
@pytest.mark.parametrize("opens", [OPEN, CLOSED], ids=["open", "closed"])
def test_speculative_decoding_continues_from_the_steered_token(model: str, opens: float) -> None:
    given = vector(model, opens=opens)

    def draft() -> dict[str, Any]:
        return {"draft_model": LlamaPromptLookupDecoding(num_pred_tokens=4)}

    llama, reference = steered(model, given, way="cvec", **draft()), plain(model, **draft())
    for text in (LONG[:150], LONG[:60]):
        prompt = tokens_of(llama, text)
        llama.reset()
        reference.reset()
        logits = complete(llama, prompt, 24)
        if alpha_of(llama):
            steer_by_hand(evaluated(reference, prompt), given, alpha_of(llama))
        assert np.array_equal(logits, complete(reference, prompt, 24))


# What it says it did ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "modality"),
    [(TEXT, "text"), (IMAGE, "image"), (PICTURES, "image"), (FILM, "video")],
    ids=["text", "image", "pictures", "film"],
)
@both_ways
def test_the_report_agrees_with_an_independent_computation(
    messages: Messages, modality: str, way: str
) -> None:
    given = vector(DEMO)
    llama = steered(DEMO, given, mmproj=DEMO_MMPROJ, way=way)
    measuring = tapped(DEMO, chat_handler=plain_handler(), **OPTIONS)
    states: list[Logits] = []
    with measuring.tap.visiting([given.layer], lambda o: states.append(o.read()[-1])):
        # Plain llama-cpp-python knows no films: their frames lie in a prompt as pictures do.
        shown = PICTURES if messages == FILM else messages
        measuring.create_chat_completion(shown, max_tokens=1)
    for reply in (chat(llama, messages)[1], stream(llama, messages)[1]):
        if isinstance(reply, list):
            assert [("mars" in chunk) for chunk in reply] == [False] * (len(reply) - 1) + [True]
        report = (reply[-1] if isinstance(reply, list) else reply)["mars"]
        g = given.geometry
        t = expected_t(given, states[-1], modality)
        assert report["t"] == pytest.approx(t, abs=1e-3)
        z = (report["t"] - g.thresholds[modality]) / g.spreads[modality]
        assert report["z"] == pytest.approx(z)
        assert report["gate"] == 1.0
        assert report["alpha"] == pytest.approx((g.trust_limit - report["t"]) * g.distance)
        assert (report["modality"], report["way"]) == (modality, way)
        assert report["layer"] == given.layer
        assert report["milliseconds"] > 0
    assert report | {"policies": None} == vars(llama.last_steering)


def plain_handler() -> Any:
    return plain(DEMO, mmproj=DEMO_MMPROJ).chat_handler


def test_the_report_comes_through_a_call_that_knows_only_llama() -> None:
    """As the server's streaming path calls it: unbound, by the base class's name."""
    llama = steered(DEMO)
    chunks = list(llama_cpp.Llama.create_chat_completion(llama, TEXT, stream=True, max_tokens=3))
    assert chunks[-1]["mars"] | {"policies": None} == vars(llama.last_steering)
    reply = llama_cpp.Llama.create_chat_completion(llama, TEXT, max_tokens=3)
    assert reply["mars"]["alpha"] > 0


def test_the_modality_is_that_of_the_context_and_not_of_the_last_message() -> None:
    llama = steered(DEMO, vector(DEMO, opens=CLOSED), mmproj=DEMO_MMPROJ)
    history: Messages = [*IMAGE, assistant("Tea."), user(FOLLOW_UP)]
    seen = [
        chat(llama, messages, 1)[1]["mars"]
        for messages in (TEXT, history, TEXT, [*history, assistant("Tea."), *FILM], PICTURES)
    ]
    assert [report["modality"] for report in seen] == ["text", "image", "text", "video", "image"]
    assert {report["alpha"] for report in seen} == {0.0}
    assert {report["way"] for report in seen} == {None}


def test_frames_are_judged_as_images_by_a_vector_without_video() -> None:
    given = vector(DEMO, modalities=("text", "image"))
    llama = steered(DEMO, given, mmproj=DEMO_MMPROJ)
    report = chat(llama, FILM, 1)[1]["mars"]
    assert report["modality"] == "video"
    g = given.geometry
    assert report["z"] == pytest.approx((report["t"] - g.thresholds["image"]) / g.spreads["image"])


def test_a_picture_in_the_context_never_matches_another_picture_or_text() -> None:
    llama = steered(DEMO, vector(DEMO, opens=CLOSED), mmproj=DEMO_MMPROJ)
    reference = plain(DEMO, mmproj=DEMO_MMPROJ)
    chat(llama, IMAGE, 1)
    ids = llama.input_ids[: llama.n_tokens].copy()
    assert (ids < 0).sum() > 0
    assert len(set(ids[ids < 0])) == 1
    prompt = np.where(ids < 0, 0, ids).tolist()
    logits = complete(llama, prompt)
    assert np.array_equal(logits, complete(evaluated(reference, prompt[: prompt.index(0)]), prompt))
    chat(llama, [user(QUESTION, picture(5))], 1)
    assert set(llama.input_ids[: llama.n_tokens]).isdisjoint(ids[ids < 0])


@both_ways
@pytest.mark.parametrize("opens", [OPEN, CLOSED], ids=["open", "closed"])
def test_a_reply_ends_where_pictures_have_filled_the_context_before_its_positions(
    mrope: str, way: str, opens: float
) -> None:
    """With M-RoPE, a picture of 100 cells takes 10 positions."""
    options: dict[str, Any] = {"mmproj": mmproj_of(mrope), "n_ctx": 256}
    llama = steered(mrope, vector(mrope, opens=opens), way=way, **options)
    messages = [user(QUESTION, picture(1, 280))]
    for _ in range(2):
        logits, reply = chat(llama, messages, -1)
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["total_tokens"] - 1 == llama.n_tokens == 256 - 90
        assert llama.context.full
    streamed, chunks = stream(llama, messages, -1)
    assert np.array_equal(streamed, logits)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    with pytest.raises(ValueError, match="Prompt exceeds n_ctx"):
        chat(llama, [user(LONG[:400], picture(1, 280), picture(2, 140))])
    fresh = steered(mrope, vector(mrope, opens=opens), way=way, **options)
    assert np.array_equal(chat(llama, IMAGE)[0], chat(fresh, IMAGE)[0])
    assert not llama.context.full
    if opens == CLOSED:
        with pytest.raises(RuntimeError, match="llama_decode returned 1"):
            chat(plain(mrope, **options), messages, -1)


# Failures say so ---------------------------------------------------------------------------------


@both_ways
def test_a_state_that_is_not_finite_raises_and_generates_nothing(tmp_path: Path, way: str) -> None:
    """One token of this model overflows."""
    model = RandomModel.llama(n_layer=3)
    model.weights["token_embd.weight"][words_of_demo()[0]] = np.inf
    path = model.write(tmp_path / "overflows.gguf")
    llama = steered(path, way=way)
    complete(llama, words_of_demo()[1:], 1)
    assert llama.last_steering is not None
    for _ in range(2):
        tokens = llama.generate(words_of_demo())
        with pytest.raises(SteeringError, match="NaN"):
            next(tokens)
        assert llama.last_steering is None
    model.weights["token_embd.weight"][:] = np.inf
    with pytest.raises(ModelError, match="cannot be steered"):
        steered(model.write(tmp_path / "always.gguf"), vector(path), force=True, way=way)


@not_rewindable
def test_an_exception_within_the_pass_surfaces_as_a_steering_error(model: str) -> None:
    llama = steered(model)
    shifts = {"text": np.zeros(3, np.float32)}
    geometry = replace(llama.vectors["mars"].geometry, shifts=shifts)
    steer(llama, replace(llama.vectors["mars"], geometry=geometry))
    with pytest.raises(SteeringError, match="during a decode"):
        complete(llama, tokens_of(llama, QUESTION))


@pytest.mark.parametrize("messages", [IMAGE, PICTURES], ids=["image", "pictures"])
def test_a_prompt_that_ends_with_an_image_is_refused(messages: Messages) -> None:
    llama = steered(DEMO, mmproj=DEMO_MMPROJ)
    chat(llama, messages, 1)
    ids = llama.input_ids[: llama.n_tokens].tolist()
    last = max(position for position, token in enumerate(ids) if token < 0)
    llama.n_tokens = last + 1
    with pytest.raises(ModelError, match="ends with an image"):
        llama.create_completion(ids[: last + 1], max_tokens=1)
    with pytest.raises(ModelError, match="ends with an image"):
        next(llama.create_completion(ids[: last + 1], max_tokens=1, stream=True))


def test_a_chat_template_that_puts_nothing_after_a_picture_is_refused() -> None:
    bare = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}"
    llama = steered(DEMO, mmproj=DEMO_MMPROJ)
    llama.template = ChatTemplate(bare + "{% endfor %}")
    picture_alone = {"role": "user", "content": user("", picture(1))["content"][:1]}
    with pytest.raises(PromptError, match="nothing after a picture"):
        chat(llama, [picture_alone], 1)
    with pytest.raises(PromptError, match="drops the text"):
        chat(llama, IMAGE, 1)


@pytest.mark.parametrize("model", ["demo", "hybrid"], indirect=True)
def test_a_picture_without_a_measured_shift_is_refused(model: str) -> None:
    llama = steered(model, vector(model, modalities=("text",)), mmproj=mmproj_of(model))
    for messages in (IMAGE, PICTURES):
        with pytest.raises(ModelError, match="measured on text only"):
            chat(llama, messages)
    fresh = steered(model, vector(model, modalities=("text",)), mmproj=mmproj_of(model))
    assert np.array_equal(chat(llama, TEXT)[0], chat(fresh, TEXT)[0])


def test_a_vector_for_another_model_is_refused_naming_what_differs(small_llama: str) -> None:
    with pytest.raises(VectorError, match="n_embd"):
        steered(DEMO, vector(small_llama))
    given = vector(DEMO)
    other = replace(given, model=replace(given.model, quantization="Q8_0"))
    with pytest.raises(VectorError, match="quantization"):
        steered(DEMO, other)
    assert steered(DEMO, other, force=True).steerer.push.way == "inline"


def test_models_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    given = vector(DEMO)
    text, whole = tmp_path / "notes.gguf", Path(DEMO).read_bytes()
    text.write_text("no model")
    for part in (1000, len(whole) // 2):
        (tmp_path / f"part{part}.gguf").write_bytes(whole[:part])
        with pytest.raises(ModelError, match="whole"):
            steered(str(tmp_path / f"part{part}.gguf"), given)
    with pytest.raises(ModelError, match="not a GGUF"):
        steered(str(text), given)
    with pytest.raises(ModelError, match="no such file"):
        steered(str(tmp_path / "none.gguf"), given)
    with pytest.raises(ModelError, match="not a file"):
        steered(str(tmp_path), given)


def test_an_mmproj_that_does_not_belong_is_refused(tmp_path: Path, small_llama: str) -> None:
    (tmp_path / "part.gguf").write_bytes(Path(DEMO_MMPROJ).read_bytes()[:5000])
    for path, mmproj in (
        (small_llama, DEMO_MMPROJ),
        (DEMO, DEMO),
        (DEMO, str(tmp_path / "part.gguf")),
    ):
        with pytest.raises(ModelError, match="belongs to this model"):
            steered(path, vector(path), mmproj=mmproj)
    with pytest.raises(ModelError, match="no such file"):
        steered(DEMO, mmproj=str(tmp_path / "none.gguf"))


@not_rewindable
def test_decoding_twice_is_refused_where_memory_cannot_rewind(model: str) -> None:
    with pytest.raises(ModelError, match="inline"):
        steered(model, way="cvec")


def test_a_pickled_llama_steers_the_same() -> None:
    for mmproj in (None, DEMO_MMPROJ):
        llama = steered(DEMO, mmproj=mmproj)
        again = pickle.loads(pickle.dumps(llama))
        assert np.array_equal(chat(llama, TEXT)[0], chat(again, TEXT)[0])
        assert again.steerer.push.way == llama.steerer.push.way


def test_a_model_of_two_blocks_is_steered_at_its_only_steerable_block(tmp_path: Path) -> None:
    path = random_llama(tmp_path / "two.gguf", n_layer=2)
    llama = steered(path, vector(path, 1))
    complete(llama, tokens_of(llama, QUESTION), 1)
    assert llama.last_steering is not None
    assert llama.last_steering.layer == 1


def test_negative_token_ids_from_outside_never_reach_a_picture_in_the_cache() -> None:
    llama = steered(DEMO, mmproj=DEMO_MMPROJ)
    chat(llama, IMAGE, 1)
    ids = llama.input_ids[: llama.n_tokens].tolist()
    others = [id - 2 if id < 0 else id for id in ids]
    for odd in (others, [*ids, *ids]):
        with pytest.raises(ModelError, match=r"token id -\d+, expected ids from 0 to"):
            llama.create_completion([*odd, *tokens_of(llama, "Hello.")], max_tokens=1)


@pytest.mark.parametrize("odd", [-1, -(2**40), 10**6, 2**31])
def test_token_ids_outside_of_the_vocabulary_are_refused(odd: int) -> None:
    llama = steered(DEMO)
    prompt = tokens_of(llama, QUESTION)
    expected = complete(llama, prompt)
    for read in (lambda ids: complete(llama, ids), llama.eval):
        with pytest.raises(ModelError, match=f"token id {odd}, expected ids from 0 to"):
            read([*prompt[:3], odd, *prompt[3:]])
    assert np.array_equal(complete(llama, prompt), expected)


def test_a_prompt_that_begins_with_the_token_sampled_last_is_a_prompt() -> None:
    llama = steered(DEMO)
    llama.eval(tokens_of(llama, QUESTION))
    sampled = llama.sample(temp=0.0)
    llama.steerer.turns.reply.steering = None
    llama.eval([sampled])
    llama.sample(temp=0.0)
    assert llama.last_steering is None  # a reply goes on
    llama.eval([llama.steerer.turns.reply.last[0], *tokens_of(llama, QUESTION)])
    llama.sample(temp=0.0)
    assert llama.last_steering is not None  # another prompt


def test_a_sample_that_was_refused_leaves_no_sampler_behind() -> None:
    llama = steered(DEMO)
    llama.eval(tokens_of(llama, QUESTION))
    llama.steerer.reader.forget()
    with pytest.raises(SteeringError):
        llama.sample(temp=0.0)
    assert llama._sampler is None
    llama.eval(tokens_of(llama, QUESTION))
    assert len({llama.sample(temp=50.0) for _ in range(20)}) > 1


def test_a_sample_after_steering_failed_is_steered_or_fails_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama = steered(DEMO, way="cvec")
    llama.eval(tokens_of(llama, QUESTION))
    with monkeypatch.context() as broken:
        broken.setattr(pushing, "_set", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llama.sample(temp=0.0)
    with pytest.raises(SteeringError):
        llama.sample(temp=0.0)


def test_an_interrupt_while_a_control_vector_is_set_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama, reference = steered(DEMO, way="cvec"), plain(DEMO)
    prompt = tokens_of(llama, QUESTION)
    original = pushing._set

    def interrupted(llama: Any, data: Any, *rest: int) -> None:
        original(llama, data, *rest)
        if data is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(llama, prompt, 1)
    monkeypatch.undo()
    steer(llama, vector(DEMO, opens=CLOSED))
    llama.reset()
    assert np.array_equal(complete(llama, prompt), complete(reference, prompt))


def test_a_control_vector_that_does_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = steered(DEMO, way="cvec")
    monkeypatch.setattr(pushing, "_set", lambda *_: None)
    with pytest.raises(SteeringError, match="does not let it be changed"):
        complete(llama, tokens_of(llama, QUESTION), 1)


def test_another_vector_judges_by_its_own_block() -> None:
    llama = steered(DEMO, vector(DEMO, 2, CLOSED))
    prompt = tokens_of(llama, QUESTION)
    complete(llama, prompt, 1)
    steer(llama, vector(DEMO, 5, CLOSED))
    complete(llama, prompt, 1)
    assert llama.last_steering is not None
    again = steered(DEMO, vector(DEMO, 5, CLOSED))
    complete(again, prompt, 1)
    assert llama.last_steering.t == pytest.approx(again.last_steering.t, abs=0.05)  # type: ignore


def test_a_draft_that_repeats_what_stands_before_a_picture_stops_there() -> None:
    llama = steered(
        DEMO, vector(DEMO, opens=CLOSED), mmproj=DEMO_MMPROJ,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=8, max_ngram_size=1),
    )  # fmt: skip
    newline = llama.chunks(IMAGE)[0].tokens[-1]
    for _ in range(2):
        llama.create_chat_completion(
            IMAGE,
            max_tokens=12,
            temperature=0.0,
            logit_bias={str(newline): 100.0},  # type: ignore
        )


def test_a_handler_of_llama_cpp_python_that_shows_no_films_is_not_handed_one() -> None:
    handler = MTMDChatHandler(DEMO_MMPROJ, verbose=False)
    llama = steered(DEMO, chat_handler=handler)
    with pytest.raises(PromptError, match="shows no films"):
        chat(llama, FILM, 1)
    with pytest.raises(ModelError, match="not both"):
        steered(DEMO, chat_handler=handler, chat_template_kwargs={"a": 1})


def test_a_film_is_a_film_in_a_state_that_another_model_loads() -> None:
    given = vector(DEMO, opens=CLOSED)
    llama, other = (steered(DEMO, given, mmproj=DEMO_MMPROJ) for _ in range(2))
    for messages, modality in ((FILM, "video"), (PICTURES, "image")):
        chat(llama, messages, 1)
        other.load_state(llama.save_state())
        assert other.context.modality == llama.context.modality == modality
