"""Tiny random models of the families that people own: each is converted, steered, chatted with,
served and evaluated, with pictures and a film, by the same code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from llama_cpp import LogitsProcessorList
from llama_cpp.llama_chat_format import MTMDChatHandler
from models import CLOSED, OPEN, OPTIONS, assistant, film, picture, user
from tiny import FAMILIES, Family

from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.model import TappedLlama
from mars_gguf.runtime.tap import LayerOutput, Rows
from mars_gguf.steering import Geometry, projection
from mars_gguf.vectors import Vector

Logits = npt.NDArray[np.float32]
N_CTX = {"n_ctx": 4096}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


@dataclass(frozen=True)
class Files:
    model: str
    mmproj: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def files(family: Family, folder: Path) -> Files:
    place = folder / family.name
    if not place.exists():
        family.write(place)
    return Files(str(place / "model.gguf"), str(place / "mmproj.gguf"))


def tapped(files: Files, **options: Any) -> TappedLlama:
    return TappedLlama(files.model, mmproj=files.mmproj, **OPTIONS | N_CTX | options)


def states(llama: TappedLlama, messages: list[Any]) -> Rows:
    """The last token's state after every block, [n_layer, n_embd], by reading all rows."""
    found: dict[int, Rows] = {}

    def visit(output: LayerOutput) -> None:
        if output.n_rows:
            found[output.layer] = output.read()[-1]

    llama.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
    (tokens,) = llama.chunks(messages)
    assert isinstance(tokens, tuple)
    with llama.tap.visiting(range(llama.n_layer), visit):
        llama.eval(tokens)
    return np.stack([found[layer] for layer in range(llama.n_layer)])


@cache
def measured(files: Files) -> tuple[Rows, Rows, Any]:
    llama = tapped(files)
    sides = [
        np.mean([states(llama, [user(text)]) for text in texts], axis=0)
        for texts in (("A hat?", "Bread and tea?"), ("A bomb?", "Poison in the tea?"))
    ]
    llama.close()
    identity = llama.fingerprint
    if identity.reasoning == "answer":  # the first token of a thought, for what follows is random
        identity = replace(identity, reasoning="thought")
    return sides[0], sides[1], identity


def vector(files: Files, layer: int, opens: float) -> Vector:
    safe, unsafe, identity = measured(files)
    layer %= identity.n_layer
    zeros = np.zeros(identity.n_embd, np.float32)
    r = unsafe[layer] - safe[layer]
    return Vector(
        layer,
        Geometry(
            safe[layer], unsafe[layer], projection(r).astype(np.float32),
            dict.fromkeys(("text", "image", "video"), zeros),
            {"text": 0.5, "image": 1.0, "video": 2.0},
            dict.fromkeys(("text", "image", "video"), opens), 1.0, 8.0,
        ),
        identity,
    )  # fmt: skip


def steered(files: Files, layer: int, opens: float, **options: Any) -> SteeredLlama:
    given = vector(files, layer, opens)
    options = OPTIONS | N_CTX | options
    return SteeredLlama(files.model, vector=given, mmproj=files.mmproj, **options)


def conversation(family: Family) -> Iterator[list[dict[str, Any]]]:
    """Three turns: a picture, one that is cut into slices if the model does that, text."""
    messages = [user("What is on it?", picture(1, family.picture_side))]
    yield messages
    yield [*messages, assistant("Tea."), user("And here?", picture(2, family.large_side))]
    messages = [*messages, assistant("Tea."), user("And here?", picture(2, family.large_side))]
    yield [*messages, assistant("A kite."), user("Why is that?")]


def say(llama: llama_cpp.Llama, messages: list[Any], *, stream: bool = False) -> Logits:
    """The logits of a reply of three tokens, [3, n_vocab]."""
    rows: list[Logits] = []

    def keep(_ids: Any, scores: Logits) -> Logits:
        rows.append(scores.copy())
        return scores

    reply: Any = llama.create_chat_completion(
        messages, temperature=0.0, max_tokens=3, repeat_penalty=1.0, stream=stream,
        logits_processor=LogitsProcessorList([keep]),
    )  # fmt: skip
    if stream:
        list(reply)
    return np.stack(rows)


class InOneString(MTMDChatHandler):
    """What llama-cpp-python's own handler would do if it knew what the template takes."""

    def _get_template_messages(self, messages: Any, media_marker: str) -> list[Any]:
        converted: list[Any] = super()._get_template_messages(messages, media_marker)
        for message in converted:
            if isinstance(message["content"], list):
                message["content"] = "\n".join(part["text"] for part in message["content"])
        return converted


class InParts(MTMDChatHandler):
    """Likewise, for templates that take typed parts alone."""

    def _get_template_messages(self, messages: Any, media_marker: str) -> list[Any]:
        converted: list[Any] = super()._get_template_messages(messages, media_marker)
        for message in converted:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        return converted


HANDLERS = {"both": MTMDChatHandler, "strings": InOneString, "parts": InParts}


def handler_of(family: Family, files: Files) -> Any:
    return HANDLERS[family.forms](files.mmproj, verbose=False)


@every_family
@pytest.mark.parametrize("layer", [1, -1])
def test_a_closed_gate_is_plain_llama_cpp_python_to_the_bit_over_three_turns(
    family: Family, files: Files, layer: int
) -> None:
    llama, streaming = (steered(files, layer, CLOSED) for _ in range(2))
    # A picture may need more of a micro-batch than llama-cpp-python would give it.
    n_ubatch = llama_cpp.llama_n_ubatch(llama.ctx)
    options = OPTIONS | N_CTX | {"n_ubatch": n_ubatch, "n_batch": max(512, n_ubatch)}
    plain = llama_cpp.Llama(files.model, chat_handler=handler_of(family, files), **options)
    for messages in conversation(family):
        expected = say(plain, messages)
        assert np.isfinite(expected).all()
        assert np.array_equal(say(llama, messages), expected)
        assert np.array_equal(say(streaming, messages, stream=True), expected)
        assert llama.last_steering is not None
        assert (llama.last_steering.alpha, llama.last_steering.modality) == (0.0, "image")
    for each in (plain, llama, streaming):
        each.close()


@every_family
@pytest.mark.parametrize("layer", [1, -1])
def test_an_open_gate_is_an_independent_callback_to_the_bit_and_the_next_turn_is_plain(
    family: Family, files: Files, layer: int
) -> None:
    llama = steered(files, layer, OPEN)
    by_hand = TappedLlama(
        files.model, chat_handler=handler_of(family, files),
        **OPTIONS | N_CTX | {"n_ubatch": llama_cpp.llama_n_ubatch(llama.ctx), "n_batch": 2048},
    )  # fmt: skip
    given = llama.vector
    for messages in list(conversation(family))[:2]:
        logits = say(llama, messages)
        steering = llama.last_steering
        assert steering is not None and steering.alpha > 0 and steering.way == "inline"
        addition = (steering.alpha * given.geometry.unit).astype(np.float32)
        left = sum(isinstance(chunk, tuple) for chunk in llama.chunks(messages))
        assert np.array_equal(logits, say_with(by_hand, messages, given.layer, addition, left))
    llama.vector = vector(files, layer, CLOSED)
    fresh = steered(files, layer, CLOSED)
    last = list(conversation(family))[2]
    assert np.array_equal(say(llama, last), say(fresh, last))
    for each in (llama, by_hand, fresh):
        each.close()


def say_with(
    llama: TappedLlama, messages: list[Any], layer: int, addition: Rows, left: int
) -> Logits:
    """What `say` gives with ``addition`` to the last row of the last of ``left`` runs of text."""
    original = llama.eval

    def visit(output: LayerOutput) -> None:
        if output.n_rows:
            output.write(output.n_rows - 1, output.read(output.n_rows - 1) + addition)

    def eval_changed(tokens: Any) -> None:
        nonlocal left
        left -= 1
        if left != 0:
            original(tokens)
            return
        with llama.tap.visiting([layer], visit):
            original(tokens)

    llama.eval = eval_changed  # type: ignore[method-assign]
    try:
        return say(llama, messages)
    finally:
        llama.eval = original  # type: ignore[method-assign]


@every_family
def test_pictures_one_or_several_cut_or_not_are_images_and_films_are_videos(
    family: Family, files: Files
) -> None:
    llama = steered(files, 1, CLOSED)
    a, b = picture(1, family.picture_side), picture(2, family.large_side)
    for message, modality in (
        (user("What?"), "text"),
        (user("What?", a), "image"),
        (user("What?", b), "image"),
        (user("What?", a, b), "image"),
        (film("What?", a, a), "video"),
    ):
        say(llama, [message])
        assert llama.last_steering is not None
        assert llama.last_steering.modality == modality
    say(llama, [film("What?", a, a), assistant("Tea."), user("And?", a)])
    assert llama.last_steering.modality == "video"
    llama.close()


@every_family
def test_every_text_of_a_conversation_changes_what_the_model_reads(
    family: Family, files: Files
) -> None:
    llama = steered(files, 1, CLOSED)
    shown = picture(1, family.picture_side)

    def t(
        system: str = "Be kind.", first: str = "One?", said: str = "Two.", last: str = "Why?"
    ) -> float:
        roles = {"role": "system", "content": system}
        say(llama, [roles, user(first, shown), assistant(said), user(last)])
        assert llama.last_steering is not None
        return llama.last_steering.t

    plain = t()
    changed = [t(system="Be rude."), t(first="Four?"), t(said="Five."), t(last="Where?")]
    assert len({plain, *changed}) == 5
    assert t() == plain
    llama.close()


@every_family
def test_small_batches_are_read_at_the_last_token(family: Family, files: Files) -> None:
    text = [user("Where do people keep tea, and why do they keep it there? " * 3)]
    llama, by_hand = steered(files, -1, CLOSED, n_batch=32, n_ubatch=8), tapped(files)
    say(llama, text)
    (tokens,) = llama.chunks(text)
    assert isinstance(tokens, tuple) and len(tokens) > 40
    state = states(by_hand, text)[llama.vector.layer]
    assert llama.last_steering is not None
    expected = llama.vector.geometry.coordinate(state, "text")
    assert llama.last_steering.t == pytest.approx(expected, abs=0.02)
    llama.close()
    by_hand.close()


@pytest.mark.parametrize("name", ["qwen2vl", "gemma4", "internvl-qwen3", "smolvlm", "llava-hf"])
def test_later_turns_reuse_pictures_and_slices_that_the_context_holds(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    place = folder / name
    if not place.exists():
        family.write(place)
    files = Files(str(place / "model.gguf"), str(place / "mmproj.gguf"))
    llama, afresh = steered(files, 1, CLOSED, keep_turns=True), steered(files, 1, CLOSED)
    decoded: list[int] = []
    original = llama.projector.decode  # type: ignore[union-attr]
    monkeypatch.setattr(
        llama.projector, "decode", lambda *a, **k: decoded.append(1) or original(*a, **k)
    )
    counts = []
    for messages in conversation(family):
        decoded.clear()
        logits, expected = say(llama, messages), say(afresh, messages)
        counts.append(len(decoded))
        assert np.abs(logits[0] - expected[0]).max() < 0.05 * np.abs(expected[0]).max() + 0.05
    first, both, _ = (
        sum(not isinstance(chunk, tuple) for chunk in llama.chunks(messages))
        for messages in conversation(family)
    )
    assert counts == [first, both - first, 0]
    llama.close()
    afresh.close()
