"""Asks models, keeping the logits of every token of a reply; steers a plain Llama by hand."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from llama_cpp import LogitsProcessorList
from models import (
    DEMO,
    Messages,
    film,
    picture,
    plain,
    tokens_of,
    user,
)

from mars_gguf.runtime.llama import SteeredLlama
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
    "model", ["demo", "short_smollm2", "small_llama", "hybrid", "recurrent"], indirect=True
)
rewindable = pytest.mark.parametrize(
    "model", ["demo", "short_smollm2", "small_llama"], indirect=True
)
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


def set_control_vector(llama: llama_cpp.Llama, layer: int, addition: Logits | None) -> None:
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
    set_control_vector(llama, given.layer, addition_for(given, alpha))
    llama.eval([token])  # removes the old entry itself
    set_control_vector(llama, given.layer, None)


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


def state(llama: SteeredLlama) -> bytes:
    """Everything llama.cpp keeps of the context's one sequence."""
    size = llama_cpp.llama_state_seq_get_size(llama.ctx, 0)
    buffer = (ctypes.c_uint8 * size)()
    assert llama_cpp.llama_state_seq_get_data(llama.ctx, buffer, size, 0) == size
    return bytes(buffer)
