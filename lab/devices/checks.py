"""Measures differences that must not be on a device: 0 is equal to the bit."""

from __future__ import annotations

import ctypes
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llama_cpp import Llama
from llama_cpp import llama_cpp as lib
from llama_cpp.llama_chat_format import MTMDChatHandler

from lab.devices.watched import Logits, Watched, afresh, say
from mars_gguf.runtime.judging import Steering
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.tap import LayerOutput
from mars_gguf.vectors import Vector, read_vector

SHUT, OPEN = 10.0, -10.0  # thresholds at the ends of what a file may say
Messages = list[Any]


@dataclass(frozen=True)
class Subject:
    """A model, its vector, how it is run, and the prompts, by what they show."""

    model: str
    mmproj: str | None
    vector: str
    options: dict[str, Any]
    prompts: dict[str, Messages]

    def handler(self) -> MTMDChatHandler | None:
        """Makes llama-cpp-python's own handler, for pictures."""
        return MTMDChatHandler(self.mmproj, verbose=False) if self.mmproj else None

    def plain(self, layers: list[int] | None = None) -> Llama:
        """Loads the model in llama-cpp-python, with ``layers`` watched."""
        options = self.options | {"chat_handler": self.handler()}
        if layers is None:
            return Llama(self.model, **options)
        return Watched(self.model, layers, **options)

    def steered(self, threshold: float | None = None, **options: Any) -> SteeredLlama:
        """Loads the steered model; its gate opens at ``threshold``, as the vector says without."""
        given = read_vector(self.vector)
        if threshold is not None:
            given = opening(given, threshold)
        return SteeredLlama(self.model, vector=given, mmproj=self.mmproj, **self.options | options)


def opening(vector: Vector, threshold: float) -> Vector:
    """Gives ``vector`` a gate that opens at ``threshold``, and room to push."""
    g = vector.geometry
    thresholds = dict.fromkeys(g.thresholds, threshold)
    geometry = replace(g, thresholds=thresholds, trust_limit=8.0)
    return replace(vector, geometry=geometry)


def decision(subject: Subject, messages: Messages) -> Steering:
    """Reads what the vector as it is decides."""
    with closing(subject.steered()) as llama:
        say(llama, messages)
        assert llama.last_steering is not None
        return llama.last_steering


def rows(subject: Subject, messages: Messages) -> float:
    """Compares the states of the last prompt token after every block as the callback in C, the one
    in Python and an independent one see them."""
    found = [_states(subject, messages, compiled) for compiled in (True, False)]
    layers = list(found[0])
    watched = subject.plain(layers)
    assert isinstance(watched, Watched)
    with closing(watched):
        found.append(watched.prompt_rows(messages))
    assert all(list(states) == layers for states in found), "a block was not seen"
    return max(_far(states[layer], found[0][layer]) for states in found[1:] for layer in layers)


def _states(subject: Subject, messages: Messages, compiled: bool) -> dict[int, Logits]:
    seen: dict[int, Logits] = {}
    options = subject.options | {"chat_handler": subject.handler(), "compiled": compiled}

    def visit(output: LayerOutput) -> None:
        if output.n_rows:
            seen[output.layer] = output.read(output.n_rows - 1)[0]

    with closing(SteeredLlama(subject.model, vector=None, **options)) as llama:
        llama.steerer.steer_by()  # a reply is what decodes

        def stop(_ids: Any, scores: Logits) -> Logits:
            llama.tap.done()
            return scores

        with llama.tap.visiting(range(llama.n_layer), visit):
            say(llama, messages, stop)
        assert list(seen) == list(range(llama.n_layer)), "a block was not seen"
    return seen


def shut(subject: Subject, messages: Messages) -> float:
    """Compares logits of a reply and the next turn, the gate shut, with plain llama-cpp-python."""
    found = []
    for llama in (subject.plain(), subject.steered(SHUT)):
        with closing(llama):
            first = say(llama, messages)
            later = [*messages, {"role": "assistant", "content": "Tea."}, _more()]
            found.append(np.concatenate([first, say(llama, later)]))
    return _far(*found)


def opened(subject: Subject, messages: Messages) -> float:
    """Compares logits of a reply steered inline with an independent callback that adds the same."""
    with closing(subject.steered(OPEN, way="inline")) as llama:
        found = say(llama, messages)
        steering, policy = llama.last_steering, llama.policies[0]
    assert steering is not None and steering.alpha > 0
    watched = subject.plain([policy.block])
    assert isinstance(watched, Watched)
    with closing(watched):
        addition = policy.push(steering.alpha)
        return _far(found, watched.say_with(messages, addition))


def in_c_and_python(subject: Subject, messages: Messages) -> float:
    """Compares logits of a reply steered inline by the callback in C with the one in Python."""
    found = []
    for compiled in (True, False):
        with closing(subject.steered(OPEN, way="inline", compiled=compiled)) as llama:
            found.append(say(llama, messages))
    return _far(*found)


def by_control_vector(subject: Subject, messages: Messages) -> float:
    """Compares t and alpha / D of a reply steered by cvec with one steered inline. (That the state
    moved by alpha, the runtime checks of every reply.)"""
    found = []
    for way in ("inline", "cvec"):
        with closing(subject.steered(OPEN, way=way)) as llama:
            say(llama, messages)
            steering, distance = llama.last_steering, llama.policies[0].geometry.distance
        assert steering is not None and steering.alpha > 0 and steering.way == way
        found.append(np.array([steering.t, steering.alpha / distance]))
    return _far(*found)


def plain_control_vector(subject: Subject, messages: Messages) -> float:
    """Compares logits of plain llama-cpp-python before and after its control vector is set and
    cleared over and over, which is what cvec rests on."""
    vector = read_vector(subject.vector)
    push = vector.policy().push(vector.geometry.distance)
    with closing(subject.plain()) as llama:
        n_layer, n_embd = lib.llama_model_n_layer(llama.model), llama.n_embd()
        buffer = np.zeros((n_layer - 1, n_embd), np.float32)
        buffer[vector.layer - 1] = push
        data = buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        first, far = say(llama, messages), 0.0
        for _ in range(10):
            lib.llama_set_adapter_cvec(llama.ctx, data, buffer.size, n_embd, 1, n_layer - 1)
            say(llama, messages)
            lib.llama_set_adapter_cvec(llama.ctx, None, 0, 0, 0, 0)
            afresh(llama)
            far = max(far, _far(first, say(llama, messages)))
    return far


def _more() -> dict[str, Any]:
    return {"role": "user", "content": "And why is that?"}


def _far(a: Logits, b: Logits) -> float:
    """Measures the largest difference; infinite for what is not finite or of another length."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max())


CHECKS = {
    "rows of every block": rows,
    "gate shut = plain": shut,
    "gate open = independent callback": opened,
    "C = Python": in_c_and_python,
    "cvec = inline": by_control_vector,
    "plain cvec": plain_control_vector,
}
