"""A tiny model to be checked: its files, what is loaded of them, and what is said to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from llama_cpp import LogitsProcessorList
from llama_cpp import llama_cpp as lib
from llama_cpp.llama_chat_format import MTMDChatHandler
from models import OPTIONS, assistant, picture, tapped, user
from PIL.Image import Image

from mars_gguf.runtime.compat import LlamaContext, ggml
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.steering import Geometry, projection
from mars_gguf.vectors import ModelFingerprint, Vector

from .families import Family

Rows = npt.NDArray[np.float32]
Messages = list[dict[str, Any]]
MODALITIES = ("text", "image", "video")
N_CTX = {"n_ctx": 4096}


@dataclass(frozen=True)
class Subject:
    """A family, and the folder of its files."""

    family: Family
    folder: Path

    @classmethod
    def of(cls, family: Family, place: Path) -> Subject:
        """Written below ``place``, if it is not there yet."""
        subject = cls(family, place / family.name)
        if not subject.folder.exists():
            family.write(subject.folder)
        return subject

    @property
    def model(self) -> str:
        return str(self.folder / "model.gguf")

    @property
    def mmproj(self) -> str | None:
        path = self.folder / "mmproj.gguf"
        return str(path) if path.exists() else None

    @property
    def architecture(self) -> str:
        return str(GGUFReader(self.model).fields["general.architecture"].contents())

    @property
    def projector(self) -> str:
        """The kind of projector, "" if there is none."""
        if self.mmproj is None:
            return ""
        return str(GGUFReader(self.mmproj).fields["clip.projector_type"].contents())

    def tapped(self, **options: Any) -> SteeredLlama:
        return tapped(self.model, mmproj=self.mmproj, **OPTIONS | N_CTX | options)

    def steered(self, layer: int, opens: float, **options: Any) -> SteeredLlama:
        """Steered at ``layer``, from the last if negative, by a gate that opens at ``opens``."""
        given = vector(self, layer, opens)
        if "chat_handler" not in options:
            options["mmproj"] = self.mmproj
        elif given.model.reasoning:  # of which a handler of llama-cpp-python's knows nothing
            given = replace(given, model=replace(given.model, reasoning=""))
            options["force"] = True
        return SteeredLlama(self.model, vector=given, **OPTIONS | N_CTX | options)

    def plain(self, like: llama_cpp.Llama | None = None, **options: Any) -> llama_cpp.Llama:
        """llama-cpp-python's own, with a micro-batch as large as that of ``like``: for a picture,
        it may need more than it would be given."""
        options = OPTIONS | N_CTX | options
        if like is not None:
            needed = int(lib.llama_n_ubatch(like.ctx))
            options |= {"n_ubatch": needed, "n_batch": max(options.get("n_batch", 512), needed)}
        return llama_cpp.Llama(self.model, chat_handler=self.handler(), **options)

    def handler(self) -> Any:
        return self.mmproj and HANDLERS[self.family.forms](self.mmproj, verbose=False)

    def pictures(self, *seeds: int, large: bool = False) -> list[Image]:
        """Pictures, the last one so large that it is cut where models cut; none for a model that
        sees none."""
        if self.family.text_only:
            return []
        side, last = self.family.picture_side, self.family.large_side
        return [picture(seed, last if large and seed == seeds[-1] else side) for seed in seeds]

    def conversation(self) -> list[Messages]:
        """Three turns: a picture; two, one of them large; text."""
        first = [user("What is on it?", *self.pictures(1))]
        second = [*first, assistant("Tea."), user("And here?", *self.pictures(3, 2, large=True))]
        return [first, second, [*second, assistant("A kite."), user("Why is that?")]]


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


# Vectors -----------------------------------------------------------------------------------------


@cache
def measured(subject: Subject) -> tuple[Rows, Rows, ModelFingerprint]:
    """Mean states after every block, [n_layer, n_embd], for two harmless and two harmful texts."""
    with contextlib.closing(subject.tapped()) as llama:
        watch = Watch(llama)
        sides = []
        for texts in (("A hat?", "Bread and tea?"), ("A bomb?", "Poison in the tea?")):
            states = []
            for text in texts:
                clear(llama)
                (chunk,) = llama.chunks([user(text)])
                llama.eval(chunk.tokens)
                states.append([watch.last[layer] for layer in range(llama.n_layer)])
            sides.append(np.mean(states, axis=0, dtype=np.float32))
        return sides[0], sides[1], at_once(llama.fingerprint)


def at_once(identity: ModelFingerprint) -> ModelFingerprint:
    """The same, of a model that thinks judged where its thought begins: one of random weights never
    comes to its answer."""
    return replace(identity, reasoning="thought") if identity.reasoning == "answer" else identity


def vector(subject: Subject, layer: int, opens: float) -> Vector:
    safe, unsafe, identity = measured(subject)
    layer %= identity.n_layer
    return _vector(layer, safe[layer], unsafe[layer], opens, identity)


def any_vector(subject: Subject, layer: int = 1) -> Vector:
    """One that was not measured."""
    with contextlib.closing(subject.tapped()) as llama:
        identity = at_once(llama.fingerprint)
    sides = np.random.default_rng(3).normal(size=(2, identity.n_embd)).astype(np.float32)
    return _vector(layer, sides[0], sides[1], 0.0, identity)


def _vector(
    layer: int, safe: Rows, unsafe: Rows, opens: float, identity: ModelFingerprint
) -> Vector:
    read_out = projection(unsafe - safe).astype(np.float32)
    shifts = dict.fromkeys(MODALITIES, np.zeros(identity.n_embd, np.float32))
    spreads = {"text": 0.5, "image": 1.0, "video": 2.0}
    opens_at = dict.fromkeys(MODALITIES, opens)
    geometry = Geometry(safe, unsafe, read_out, shifts, spreads, opens_at, 1.0, 8.0)
    return Vector(layer, geometry, identity)


# Speech ------------------------------------------------------------------------------------------


def clear(llama: llama_cpp.Llama) -> None:
    """Begin anew."""
    llama.reset()
    lib.llama_memory_clear(lib.llama_get_memory(llama.ctx), True)


def say(llama: llama_cpp.Llama, messages: Messages, *, stream: bool = False) -> Rows:
    """The logits of a reply of three tokens, [3, n_vocab].

    The third is the end of the turn: llama-cpp-python counts no token after which a character is
    unfinished, and of random models a reply may have nothing else.
    """
    rows: list[Rows] = []

    def keep(_ids: Any, scores: Rows) -> Rows:
        rows.append(scores.copy())
        if len(rows) == 3:
            scores[:] = -np.inf
            scores[llama.token_eos()] = 0
        return scores

    given: Any = messages
    reply: Any = llama.create_chat_completion(
        given, temperature=0.0, max_tokens=3, repeat_penalty=1.0, stream=stream,
        logits_processor=LogitsProcessorList([keep]),
    )  # fmt: skip
    if stream:
        list(reply)
    return np.stack(rows)


class Watch:
    """An eval callback beside the runtime's, in place of whatever ``llama`` had.

    ``last``: the last row of what each block put out last. ``addition``: a block, and what is added
    to the last row of its output.
    """

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self.last: dict[int, Rows] = {}
        self.addition: tuple[int, Rows] | None = None
        self.n_embd = llama.n_embd()
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        params = llama.context_params
        params.cb_eval = self.callback
        llama._ctx.close()
        context = LlamaContext(model=llama._model, params=params, verbose=False)
        llama._ctx = llama._stack.enter_context(contextlib.closing(context))

    def _on_node(self, tensor: int, ask: bool, _data: int) -> bool:
        kind, _, number = ggml.ggml_get_name(tensor).decode().partition("-")
        if kind != "l_out" or not number.isdecimal():
            return not ask
        if not ask:
            self._see(tensor, int(number))
        return True

    def _see(self, tensor: int, layer: int) -> None:
        rows = np.empty((ggml.ggml_nelements(tensor) // self.n_embd, self.n_embd), np.float32)
        if not rows.size:
            return
        ggml.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
        self.last[layer] = rows[-1].copy()
        if self.addition is not None and self.addition[0] == layer:
            rows[-1] += self.addition[1]
            ggml.ggml_backend_tensor_set(tensor, rows.ctypes.data, 0, rows.nbytes)


def say_with(
    llama: llama_cpp.Llama, watch: Watch, messages: Messages, layer: int, addition: Rows, run: int
) -> Rows:
    """What `say` gives with ``addition`` to the last row of the ``run``-th run of text, from 1."""
    original: Callable[[Any], None] = llama.eval
    left = run

    def eval_changed(tokens: Any) -> None:
        nonlocal left
        left -= 1
        watch.addition = (layer, addition) if left == 0 else None
        try:
            original(tokens)
        finally:
            watch.addition = None

    llama.eval = eval_changed
    try:
        return say(llama, messages)
    finally:
        llama.eval = original
