"""A state is pushed as far as was decided, or it is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from asking import LONG, QUESTION, alpha_of, complete, not_rewindable
from models import (
    CLOSED,
    DEMO,
    OPTIONS,
    opening_at,
    plain,
    steer,
    steered,
    tapped,
    tokens_of,
    vector,
)

from mars_gguf.errors import ModelError, SteeringError
from mars_gguf.runtime import pushing


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


@not_rewindable
def test_an_exception_within_the_pass_surfaces_as_a_steering_error(model: str) -> None:
    llama = steered(model)
    shifts = {"text": np.zeros(3, np.float32)}
    geometry = replace(llama.vectors["mars"].geometry, shifts=shifts)
    steer(llama, replace(llama.vectors["mars"], geometry=geometry))
    with pytest.raises(SteeringError, match="during a decode"):
        complete(llama, tokens_of(llama, QUESTION))


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


def test_control_vectors_that_llama_cpp_would_ignore_or_overrun_are_refused() -> None:
    llama = tapped(DEMO, **OPTIONS)
    good = np.zeros(llama.n_embd(), np.float32)
    for layer, values in ((0, good), (llama.n_layer, good), (-1, good), (1, good[1:])):
        with (
            pytest.raises(ModelError, match="expected"),
            pushing.control_vector(llama, layer, values),
        ):
            pass
