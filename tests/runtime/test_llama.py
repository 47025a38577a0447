"""A whole steered model: what is not steered is plain llama-cpp-python to the bit, and what is
steered is what an independent computation gives."""

from __future__ import annotations

import pickle
from typing import Any

import llama_cpp
import numpy as np
import pytest
from asking import (
    FOLLOW_UP,
    IMAGE,
    LONG,
    PICTURES,
    QUESTION,
    TEXT,
    addition_for,
    alpha_of,
    both_ways,
    chat,
    complete,
    evaluated,
    every_model,
    expected_t,
    not_rewindable,
    rewindable,
    steer_by_hand,
    stream,
    text_of,
    words,
)
from llama_cpp.llama_chat_format import MTMDChatHandler
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPEN,
    OPTIONS,
    Messages,
    assistant,
    last_states,
    mmproj_of,
    picture,
    plain,
    steer,
    steered,
    tapped,
    tokens_of,
    user,
    vector,
)

from mars_gguf.errors import ModelError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits as logits_of
from mars_gguf.runtime.tap import LayerOutput
from mars_gguf.vectors import Vector

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


# Whoever calls it, and whatever it steers by ---------------------------------------------------


def test_the_report_comes_through_a_call_that_knows_only_llama() -> None:
    """As the server's streaming path calls it: unbound, by the base class's name."""
    llama = steered(DEMO)
    chunks = list(llama_cpp.Llama.create_chat_completion(llama, TEXT, stream=True, max_tokens=3))
    assert chunks[-1]["mars"] | {"policies": None, "picture": None} == vars(llama.last_steering)
    reply = llama_cpp.Llama.create_chat_completion(llama, TEXT, max_tokens=3)
    assert reply["mars"]["alpha"] > 0


def test_a_pickled_llama_steers_the_same() -> None:
    for mmproj in (None, DEMO_MMPROJ):
        llama = steered(DEMO, mmproj=mmproj)
        again = pickle.loads(pickle.dumps(llama))
        assert np.array_equal(chat(llama, TEXT)[0], chat(again, TEXT)[0])
        assert again.steerer.push.way == llama.steerer.push.way


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


# Several vectors at once -------------------------------------------------------------------------

blocks = pytest.mark.parametrize("layers", [(2, 5), (5, 2)], ids=str)


def both(
    layers: tuple[int, int], opens: float = OPEN, limits: tuple[float, float] = (8.0, 4.0)
) -> dict[str, Vector]:
    """Two vectors by name, of two blocks; where both open, the first is the stronger one."""
    return {
        name: vector(DEMO, layer, opens, limit=limit)
        for name, layer, limit in zip("ab", layers, limits, strict=True)
    }


def by_all(vectors: dict[str, Vector], **options: Any) -> SteeredLlama:
    return SteeredLlama(DEMO, vector=vectors, **OPTIONS | options)


@blocks
@both_ways
def test_closed_gates_of_several_vectors_change_nothing_to_the_bit(
    layers: tuple[int, int], way: Any
) -> None:
    reference = plain(DEMO, mmproj=DEMO_MMPROJ)
    llama = by_all(both(layers, CLOSED), mmproj=DEMO_MMPROJ, way=way)
    messages: Messages = list(TEXT)
    for question in (user(FOLLOW_UP, picture(1)), user(FOLLOW_UP)):
        expected, reply = chat(reference, messages)
        logits, ours = chat(llama, messages)
        assert np.array_equal(logits, expected)
        assert (ours["mars"]["alpha"], ours["mars"]["way"]) == (0.0, None)
        messages += [assistant(text_of(reply)), question]


@blocks
@both_ways
@pytest.mark.parametrize("messages", [TEXT, IMAGE], ids=["text", "image"])
def test_the_strongest_of_several_is_pushed_as_if_it_were_alone(
    layers: tuple[int, int], way: Any, messages: Messages
) -> None:
    vectors = both(layers)
    options: dict[str, Any] = {"mmproj": DEMO_MMPROJ, "way": way}
    llama, alone, other = (
        by_all(vectors, **options),
        steered(DEMO, vectors["a"], **options),
        steered(DEMO, vectors["b"], **options),
    )
    # Twice, the second time from what the first reply has left in the context.
    for asked in (messages, [*messages, assistant("Tea."), user(FOLLOW_UP)]):
        (logits, reply), (expected, single) = chat(llama, asked), chat(alone, asked)
        assert np.array_equal(logits, expected)
        report, own, weaker = reply["mars"], single["mars"], chat(other, asked)[1]["mars"]
        assert own["alpha"] > 0 and report["layer"] == layers[0] and report["way"] == way
        for name in ("t", "z", "gate", "alpha", "modality", "position"):
            assert report[name] == own[name]
        named = {"a": own, "b": weaker}
        assert report["policies"].keys() == named.keys()
        for name, by_itself in named.items():
            assert report["policies"][name] == {
                key: pytest.approx(by_itself[key], rel=1e-5)
                for key in ("t", "z", "gate", "alpha", "layer")
            }


@not_rewindable
@pytest.mark.parametrize("layers", [(1, 2), (2, 1)], ids=str)
def test_the_strongest_is_pushed_where_memory_cannot_rewind_as_well(
    model: str, layers: tuple[int, int]
) -> None:
    vectors = {
        name: vector(model, layer, limit=limit)
        for name, layer, limit in zip("ab", layers, (8.0, 4.0), strict=True)
    }
    llama = SteeredLlama(model, vector=vectors, **OPTIONS)
    alone = steered(model, vectors["a"])
    for question in (QUESTION, FOLLOW_UP):
        prompt, forced = tokens_of(llama, question), words(llama)
        expected = complete(alone, prompt, forced=forced)
        assert np.array_equal(complete(llama, prompt, forced=forced), expected)
        assert llama.last_steering is not None and llama.last_steering.layer == layers[0]
        assert alpha_of(llama) == alpha_of(alone) > 0


@blocks
def test_of_several_the_one_that_opens_is_followed(layers: tuple[int, int]) -> None:
    vectors = both(layers) | {"b": vector(DEMO, layers[1], limit=4.0)}
    vectors["a"] = vector(DEMO, layers[0], CLOSED)
    llama, alone = by_all(vectors), steered(DEMO, vectors["b"])
    (logits, reply), (expected, _) = chat(llama, TEXT), chat(alone, TEXT)
    assert np.array_equal(logits, expected)
    assert reply["mars"]["layer"] == layers[1]
    assert [row["alpha"] > 0 for row in reply["mars"]["policies"].values()] == [False, True]


def test_several_vectors_are_asked_within_a_pickled_model_as_well() -> None:
    llama = by_all(both((2, 5)))
    again = pickle.loads(pickle.dumps(llama))
    assert [policy.name for policy in again.policies] == ["a", "b"]
    assert np.array_equal(chat(llama, TEXT)[0], chat(again, TEXT)[0])
