"""What a context holds after replies that were steered, and from states that were saved: nothing of
what steering left."""

from __future__ import annotations

import numpy as np
import pytest
from asking import (
    FILM,
    FOLLOW_UP,
    IMAGE,
    PICTURES,
    QUESTION,
    TEXT,
    alpha_of,
    chat,
    complete,
    evaluated,
    every_model,
    not_rewindable,
    rewindable,
    steer_by_hand,
    words,
)
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    Messages,
    assistant,
    plain,
    steer,
    steered,
    tokens_of,
    user,
    vector,
)

from mars_gguf.errors import ModelError
from mars_gguf.runtime.reading import logits as logits_of


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
def test_a_reset_forgets_what_was_steered(model: str) -> None:
    given = vector(model)
    llama, fresh = steered(model, given), steered(model, given)
    prompt = tokens_of(llama, QUESTION)
    complete(llama, prompt, forced=words(llama))
    llama.reset()
    other = tokens_of(llama, FOLLOW_UP)
    assert np.array_equal(complete(llama, other), complete(fresh, other))


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


@pytest.mark.parametrize("odd", [-1, -(2**40), 10**6, 2**31])
def test_token_ids_outside_of_the_vocabulary_are_refused(odd: int) -> None:
    llama = steered(DEMO)
    prompt = tokens_of(llama, QUESTION)
    expected = complete(llama, prompt)
    for read in (lambda ids: complete(llama, ids), llama.eval):
        with pytest.raises(ModelError, match=f"token id {odd}, expected ids from 0 to"):
            read([*prompt[:3], odd, *prompt[3:]])
    assert np.array_equal(complete(llama, prompt), expected)


def test_a_film_is_a_film_in_a_state_that_another_model_loads() -> None:
    given = vector(DEMO, opens=CLOSED)
    llama, other = (steered(DEMO, given, mmproj=DEMO_MMPROJ) for _ in range(2))
    for messages, modality in ((FILM, "video"), (PICTURES, "image")):
        chat(llama, messages, 1)
        other.load_state(llama.save_state())
        assert other.context.modality == llama.context.modality == modality
