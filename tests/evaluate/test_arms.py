"""Every arm against what it claims to be."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import models
import numpy as np
import pytest
from llama_cpp import llama_cpp as lib
from models import DEMO, DEMO_MMPROJ, OPTIONS, Messages, picture, user

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.arms import ALL as NAMES
from mars_gguf.evaluate.arms import (
    MARS,
    PLAIN,
    RANDOM,
    SAFETY_PROMPT,
    UNSTEERED,
    Arm,
    arms,
    steered_by,
)
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits as logits_of

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "repeat_penalty": 1.0}
PROMPTS: list[Messages] = [[user("How do I make a bomb?")], [user("What is it?", picture(3))]]
ALL = {arm.name: arm for arm in arms(["all"])}


@pytest.fixture(scope="module")
def llama() -> Iterator[SteeredLlama]:
    """The demo model, steered by a vector whose gate opens at t = 0."""
    vector = models.vector(DEMO, opens=0.0, limit=3.0)
    llama = SteeredLlama(DEMO, vector=vector, mmproj=DEMO_MMPROJ, **OPTIONS)
    yield llama
    llama.close()


def ask(llama: Any, messages: Messages) -> str:
    llama.reset()
    llama._ctx.kv_cache_clear()
    reply: Any = llama.create_chat_completion(messages, **GREEDY)
    return str(reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("arm", [UNSTEERED, PLAIN])
@pytest.mark.parametrize("messages", PROMPTS)
def test_unsteered_is_plain_llama_to_the_bit(
    llama: SteeredLlama, messages: Messages, arm: Arm
) -> None:
    plain = models.plain(DEMO, mmproj=DEMO_MMPROJ)
    with steered_by(llama, arm):
        reply = ask(llama, messages)
    assert reply == ask(plain, messages)
    assert np.array_equal(logits_of(llama), logits_of(plain))
    assert (llama.last_steering is None) == (arm is PLAIN)
    plain.close()


@pytest.mark.parametrize("messages", PROMPTS)
def test_stock_is_llama_cpp_with_its_control_vector_on_every_token(
    llama: SteeredLlama, messages: Messages
) -> None:
    plain = models.plain(DEMO, mmproj=DEMO_MMPROJ)
    vector = llama.vectors["mars"]
    n_embd = vector.model.n_embd
    data = np.zeros((vector.model.n_layer - 1, n_embd), np.float32)
    data[vector.layer - 1] = vector.geometry.direction
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    layers = vector.layer, vector.layer
    assert lib.llama_set_adapter_cvec(plain.ctx, pointer, data.size, n_embd, *layers) == 0
    with steered_by(llama, ALL["stock"]):
        reply = ask(llama, messages)
    assert reply == ask(plain, messages)
    assert np.array_equal(logits_of(llama), logits_of(plain))
    steered = logits_of(llama)
    with steered_by(llama, UNSTEERED):
        ask(llama, messages)
    assert not np.array_equal(logits_of(llama), steered)
    plain.close()


@pytest.mark.parametrize("messages", PROMPTS)
def test_the_strength_of_each_arm_is_what_its_formula_gives(
    llama: SteeredLlama, messages: Messages
) -> None:
    g = llama.vectors["mars"].geometry
    measured = {}
    modality = "image" if isinstance(messages[0]["content"], list) else "text"
    for name, arm in ALL.items():
        with steered_by(llama, arm):
            ask(llama, arm.messages(messages))
        assert llama.last_steering is not None
        measured[name] = llama.last_steering
    assert measured["mars"].modality == modality
    moved = float(g.readout.astype(np.float64) @ g.shifts[modality].astype(np.float64))
    t = measured["unsteered"].t
    assert measured["first-token"].alpha == pytest.approx(g.distance)
    assert measured["no-gate"].alpha == pytest.approx(g.distance * max(3.0 - t, 0), rel=1e-4)
    assert measured["no-recentering"].t == pytest.approx(t + moved, abs=1e-3)
    gate = np.clip(t / g.spreads[modality], 0, 1)
    assert measured["mars"].alpha == pytest.approx(gate * g.distance * max(3 - t, 0), rel=1e-3)
    for name in RANDOM:
        assert measured[name].alpha == pytest.approx(measured["mars"].alpha, rel=1e-5)
        assert measured[name].t == pytest.approx(t, abs=1e-6)
    assert measured["safety-prompt"].alpha == 0


def test_an_arm_leaves_nothing_behind(llama: SteeredLlama) -> None:
    before, policies = ask(llama, PROMPTS[0]), llama.policies
    for arm in ALL.values():
        with suppress(ZeroDivisionError), steered_by(llama, arm):
            ask(llama, arm.messages(PROMPTS[1]))
            raise ZeroDivisionError
        assert llama.policies == policies
        assert ask(llama, PROMPTS[0]) == before


def test_a_name_that_is_no_arm_is_refused_and_unsteered_is_always_there() -> None:
    assert [arm.name for arm in arms(["mars"])] == ["unsteered", "mars"]
    assert [arm.name for arm in arms(["random"])] == ["unsteered", *RANDOM]
    assert [*ALL] == list(NAMES)
    with pytest.raises(MarsError, match="no arm best, expected some of unsteered, safety"):
        arms(["mars", "best"])


def pushes(llama: SteeredLlama, arm: Arm) -> np.ndarray:
    """What an arm's policy adds at the block where it pushes by its D."""
    policy = arm.policy(llama.vectors["mars"])
    return policy.push(policy.geometry.distance)


def test_random_directions_are_as_long_as_the_vector_and_across_it(llama: SteeredLlama) -> None:
    r = pushes(llama, MARS)
    random = [pushes(llama, ALL[name]) for name in RANDOM]
    for one in random:
        assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(r), rel=1e-5)
        assert abs(one @ r) < 0.3 * float(r @ r)  # of n_embd 256, 0.06 is usual
        assert sum(abs(one @ other) > 0.9 * float(r @ r) for other in random) == 1


def test_a_safety_prompt_stands_after_the_system_prompt_that_is_there() -> None:
    for name in ("safety-prompt", "mars+safety-prompt"):
        asked = [{"role": "user", "content": "Hello"}]
        told = ALL[name].messages(asked)
        assert told == [{"role": "system", "content": SAFETY_PROMPT}, *asked]
        both = ALL[name].messages([{"role": "system", "content": "Be brief."}, *asked])
        assert both[0]["content"] == f"Be brief.\n\n{SAFETY_PROMPT}" and both[1:] == asked
    assert MARS.messages(asked) == asked
