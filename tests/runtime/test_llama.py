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
    rewindable,
    steer_by_hand,
    stream,
    text_of,
    words,
)
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


more_models = [pytest.param(name, marks=pytest.mark.slow) for name in ("recurrent", "gemma")]


@pytest.mark.parametrize("model", ["demo", "hybrid", "mrope", *more_models], indirect=True)
@pytest.mark.parametrize("first", [TEXT, IMAGE, PICTURES], ids=["text", "image", "pictures"])
def test_a_closed_gate_leaves_chats_as_they_are_to_the_bit_called_and_streamed(
    model: str, first: Messages
) -> None:
    mmproj, more = (None, []) if first is TEXT else (mmproj_of(model), [picture(3)])
    reference = plain(model, mmproj=mmproj)
    llama, streaming = (
        steered(model, vector(model, opens=CLOSED), mmproj=mmproj) for _ in range(2)
    )
    messages: Messages = list(first)
    for content in (user(LONG[:200]), user(FOLLOW_UP, *more)):
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
