"""One reply at a time: begun, given up, overtaken, with drafts; ended where the context is full.
One thread at a time: a method holds the lock of its object, a stream at each of its steps."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from asking import (
    IMAGE,
    LONG,
    PICTURES,
    QUESTION,
    TEXT,
    alpha_of,
    both_ways,
    chat,
    complete,
    evaluated,
    steer_by_hand,
    stream,
)
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPEN,
    mmproj_of,
    picture,
    plain,
    steered,
    tokens_of,
    user,
    vector,
)

from mars_gguf.errors import ModelError, PromptError, SteeringError
from mars_gguf.runtime.turns import OVERTAKEN, locked


class Locked:
    """Says whether its lock is held, which is no RLock here, to be seen."""

    def __init__(self) -> None:
        self.lock, self.closed, self.ended = threading.Lock(), False, False

    @locked
    def whole(self, n: int) -> tuple[bool, int]:
        """A docstring."""
        return self.lock.locked(), n

    @locked
    def stream(self, n: int) -> Iterator[bool]:
        def steps() -> Iterator[bool]:
            try:
                for _ in range(n):
                    yield self.lock.locked()
                raise KeyError("a step")
            finally:
                self.ended = True

        return steps()


def test_a_method_holds_the_lock_and_a_stream_at_each_step_and_not_in_between() -> None:
    each = Locked()
    assert each.whole(3) == (True, 3) and not each.lock.locked()
    assert Locked.whole.__doc__ == "A docstring."
    steps = each.stream(2)
    for _ in range(2):
        assert next(steps) and not each.lock.locked()
    with pytest.raises(KeyError, match="a step"):
        next(steps)
    assert each.ended and not each.lock.locked()


def test_a_stream_that_is_given_up_is_closed_and_of_what_is_closed_nothing_is_called() -> None:
    each = Locked()
    steps = each.stream(3)
    next(steps)
    assert not each.ended
    steps.close()  # type: ignore[attr-defined]
    assert each.ended
    each.closed = True
    for use in (lambda: each.whole(1), lambda: each.stream(1)):
        with pytest.raises(ModelError, match="closed"):
            use()
    assert not each.lock.locked()


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


@pytest.mark.parametrize("model", ["demo", "short_smollm2"], indirect=True)
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


def test_of_two_replies_the_one_that_began_last_goes_on() -> None:
    llama, fresh = steered(DEMO), steered(DEMO)
    one, other = (llama.generate(tokens_of(llama, text), temp=0.0) for text in (QUESTION, LONG))
    next(one)
    alone = fresh.generate(tokens_of(fresh, LONG), temp=0.0)
    assert next(other) == next(alone)
    with pytest.raises(SteeringError) as overtaken:
        next(one)
    assert str(overtaken.value) == OVERTAKEN
    assert [next(other) for _ in range(5)] == [next(alone) for _ in range(5)]
    llama.steerer.turns.give_up()
    with pytest.raises(SteeringError, match="cannot go on"):
        next(other)


@pytest.mark.parametrize("model", ["hybrid", "recurrent"], indirect=True)
def test_other_policies_push_where_memory_cannot_rewind_what_others_had_judged(model: str) -> None:
    shut, opening = (vector(model, 1, opens).policy() for opens in (CLOSED, OPEN))
    llama, prompt = steered(model, keep_turns=True), [5, 6, 7, 8, 9, 10]

    def asked(end: int = 6) -> Any:
        return llama.create_completion(prompt[:end], max_tokens=1, temperature=0.0)

    with llama.using(opening):
        expected, alpha = asked(), alpha_of(llama)
    llama.reset()
    with llama.using(shut):
        asked(4)
        asked()
    with llama.using(opening):  # the same prompt, which is there with all that was read of it
        assert asked()["choices"] == expected["choices"]
    assert 0 < alpha_of(llama) == pytest.approx(alpha, rel=1e-3)


def test_a_prompt_of_no_tokens_is_refused_and_the_reply_before_goes_on() -> None:
    llama, fresh = steered(DEMO), steered(DEMO)
    tokens = tokens_of(llama, QUESTION)
    steps, expected = (each.generate(tokens, temp=0.0) for each in (llama, fresh))
    assert next(steps) == next(expected)
    for ask in (
        lambda: next(llama.generate([])),
        lambda: llama.create_completion([], max_tokens=1),
        lambda: list(llama.create_completion([], max_tokens=1, stream=True)),
    ):
        with pytest.raises(PromptError, match="found nothing, expected text"):
            ask()
    assert [next(steps) for _ in range(3)] == [next(expected) for _ in range(3)]
