"""What is checked of every family, once: by the tests of some of them, by the matrix of all.

A check returns a remark, or nothing, where all holds. It raises AssertionError for what does not
hold, and NotHere where there is nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as lib
from models import CLOSED, OPEN, assistant, film, steer, user

from mars_gguf.errors import ModelError
from mars_gguf.runtime.judging import Seen
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.messages import each_isolated
from mars_gguf.runtime.tap import Rows

from .subject import Messages, Subject, Watch, any_vector, clear, say, say_with, vector

Check = Callable[[Subject], str | None]
Q8_0 = 8  # ggml's
NO_REWIND = "recurrent memory cannot be rewound"


class NotHere(Exception):
    """The check does not apply to the family; the message says why."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def equal(found: Rows, expected: Rows, what: str) -> None:
    """Both are the same to the bit, and numbers."""
    require(bool(np.isfinite(expected).all()), f"{what}: not finite")
    difference = float(np.abs(found - expected).max())
    require(np.array_equal(found, expected), f"{what}: differs by up to {difference:.3g}")


def alike(found: Rows, expected: Rows, what: str) -> None:
    """Both are the same up to rounding."""
    difference, size = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    require(difference < 0.002 * size, f"{what}: differs by {difference:.3g} of {size:.3g}")


def decode(llama: SteeredLlama, chunks: list[Any]) -> None:
    """Decode the beginning of a prompt into an empty context."""
    clear(llama)
    for chunk in chunks:
        if chunk.is_text:
            llama.eval(chunk.tokens)
        else:
            assert llama.projector is not None
            llama.n_tokens = llama.projector.decode(llama.ctx, chunk, llama.n_tokens)


def probe(subject: Subject) -> None:
    """The probe sees what another callback sees: the last token's row of every block's output."""
    with closing(subject.tapped()) as llama, closing(subject.tapped()) as other:
        watch = Watch(other)
        for messages in ([user("Where is the tea?")], subject.conversation()[0]):
            *before, last = llama.chunks(messages)
            decode(other, other.chunks(messages))
            for layer in range(llama.n_layer):
                decode(llama, before)
                llama.steerer.reader.evaluate(list(last.tokens), [layer])
                equal(llama.steerer.reader.states[layer], watch.last[layer], f"l_out-{layer}")


def closed(subject: Subject, layer: int = 1, **options: Any) -> None:
    """A closed gate is plain llama-cpp-python to the bit over three turns, called and streamed."""
    with (
        closing(subject.steered(layer, CLOSED, **options)) as llama,
        closing(subject.steered(layer, CLOSED, **options)) as streaming,
        closing(subject.plain(llama, **options)) as plain,
    ):
        for turn, messages in enumerate(subject.conversation(), 1):
            expected = say(plain, messages)
            equal(say(llama, messages), expected, f"turn {turn}")
            equal(say(streaming, messages, stream=True), expected, f"turn {turn}, streamed")
            steering = llama.last_steering
            require(steering is not None and steering.alpha == 0, "the gate is open")


def opened(subject: Subject, layer: int = 1, **options: Any) -> None:
    """An open gate is what another callback makes of plain llama-cpp-python, to the bit."""
    with (
        closing(subject.steered(layer, OPEN, **options)) as llama,
        closing(subject.plain(llama, **options)) as by_hand,
    ):
        watch = Watch(by_hand)
        given = llama.vectors["mars"]
        for messages in subject.conversation()[:2]:
            clear(by_hand)
            llama.reset()
            logits = say(llama, messages)
            steering = llama.last_steering
            require(steering is not None and steering.alpha > 0, "the gate is closed")
            assert steering is not None
            require(steering.way == "inline", f"way {steering.way}")
            addition = (steering.alpha * given.geometry.unit).astype(np.float32)
            runs = sum(chunk.is_text for chunk in llama.chunks(messages))
            expected = say_with(by_hand, watch, messages, given.layer, addition, runs)
            equal(logits, expected, "logits")


def next_turn(subject: Subject) -> None:
    """The turn after a steered one is plain: nothing steered stays in the context, whether the
    next prompt begins anew or goes on from what is there."""
    first, _, last = subject.conversation()
    text = subject.family.text_only
    # What a prompt has in common with the last one is not decoded again, or in other batches.
    next_turn_of(subject, first, last, alike if text else equal)
    next_turn_of(subject, first, last, alike, keep_turns=True)
    with (
        closing(subject.steered(1, OPEN)) as llama,
        closing(subject.steered(1, CLOSED)) as fresh,
    ):
        tokens = llama.tokenize(b"Where do people keep tea, and why?")
        complete(llama, tokens)
        require(llama.last_steering is not None and llama.last_steering.alpha > 0, "not steered")
        steer(llama, vector(subject, 1, CLOSED))
        longer = [*tokens, *llama.tokenize(b" In a tin.", add_bos=False)]
        complete(llama, longer)
        complete(fresh, longer)
        alike(last_logits(llama), last_logits(fresh), "logits of a longer prompt")


def next_turn_of(
    subject: Subject, first: Messages, last: Messages, same: Callable[..., None], **options: Any
) -> None:
    with (
        closing(subject.steered(1, OPEN, **options)) as llama,
        closing(subject.steered(1, CLOSED)) as fresh,
    ):
        steered = say(llama, first)
        require(not np.array_equal(steered[0], say(fresh, first)[0]), "nothing was steered")
        steer(llama, vector(subject, 1, CLOSED))
        clear(fresh)
        same(say(llama, last), say(fresh, last), f"logits {options or ''}")


def complete(llama: llama_cpp.Llama, tokens: list[int]) -> None:
    """Evaluate a prompt, from what it has in common with the last one, and sample a token."""
    next(iter(llama.generate(tokens, temp=0.0)))


def cvec(subject: Subject) -> None:
    """llama.cpp's control vector does what is done inline: to the bit where the last token is in a
    batch of its own, else to rounding."""
    if subject.family.hybrid:
        refused(lambda: subject.steered(1, OPEN, way="cvec"), "recurrent or hybrid memory")
        raise NotHere(f"{NO_REWIND}: refused")
    text = [user("Where do people keep tea?")]
    with closing(subject.tapped()) as llama:
        (chunk,) = llama.chunks(text)
    both(subject, text, equal, n_batch=chunk.n_tokens - 1)
    both(subject, subject.conversation()[1], alike)


def both(subject: Subject, messages: Messages, same: Callable[..., None], **options: Any) -> None:
    with (
        closing(subject.steered(1, OPEN, way="inline", **options)) as inline,
        closing(subject.steered(1, OPEN, way="cvec", **options)) as again,
    ):
        logits, expected = say(again, messages), say(inline, messages)
        for llama, way in ((inline, "inline"), (again, "cvec")):
            steering = llama.last_steering
            require(steering is not None and steering.way == way, f"not steered by {way}")
        same(logits, expected, "logits")


def batches(subject: Subject) -> str | None:
    """A closed gate is exact with batches and micro-batches smaller than prompt and picture."""
    first = subject.conversation()[0]
    with closing(subject.tapped()) as llama:
        cells = [c.n_tokens for c in llama.chunks(first) if not c.is_text]
    few = max(2, min([8, *(n // 2 for n in cells)]))
    small = {"n_batch": few, "n_ubatch": few}
    if not subject.family.non_causal:
        closed(subject, **small)
        closed(subject, -1, **small)
        return None
    with (
        closing(subject.steered(-1, CLOSED, **small)) as llama,
        closing(llama_cpp.Llama(subject.model, **small, n_ctx=512, verbose=False)) as plain,
    ):
        text = llama.chunks([user("Where do people keep tea?")])[0].tokens
        llama.eval(text)
        plain.eval(text)
        equal(last_logits(llama), last_logits(plain), "logits of text")
        require(lib.llama_n_ubatch(llama.ctx) >= max(cells), "no room was made for a picture")
        say(llama, first)
    with closing(subject.steered(1, CLOSED, **small, chat_handler=subject.handler())) as llama:
        refused(lambda: say(llama, first), "n_ubatch")
    return "a picture must fit into a micro-batch: it is made large enough, or refused"


def last_logits(llama: llama_cpp.Llama) -> Rows:
    row = lib.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(row, (llama.n_vocab(),)).copy()


def flash_attention(subject: Subject) -> None:
    """Closed and open gates are as exact with flash attention."""
    closed(subject, flash_attn=True)
    opened(subject, flash_attn=True)


def quantized_cache(subject: Subject) -> None:
    """Closed and open gates are as exact with keys and values in Q8_0."""
    options = {"flash_attn": True, "type_k": Q8_0, "type_v": Q8_0}
    try:
        with closing(llama_cpp.Llama(subject.model, n_ctx=512, verbose=False, **options)) as llama:
            if lib.llama_model_is_recurrent(llama.model):
                raise NotHere("there are no keys and values")
    except ValueError as error:
        raise NotHere("llama.cpp makes no such cache for this model") from error
    closed(subject, **options)
    opened(subject, **options)


def last_block(subject: Subject) -> None:
    """Closed and open gates are as exact at the last block, where llama.cpp may keep but the rows
    that it needs."""
    closed(subject, -1)
    opened(subject, -1)


def modality(subject: Subject) -> None:
    """Pictures, one or several, cut or not, are images, films are videos, and stay so."""
    if subject.family.text_only:
        raise NotHere("text alone")
    a, b = subject.pictures(1, 2, large=True)
    with closing(subject.steered(1, CLOSED)) as llama:
        for messages, expected in (
            ([user("What?")], "text"),
            ([user("What?", a)], "image"),
            ([user("What?", b)], "image"),
            ([user("What?", a, b)], "image"),
            ([film("What?", a, a)], "video"),
            ([film("What?", a, a), assistant("Tea."), user("And?", a)], "video"),
        ):
            say(llama, messages)
            assert llama.last_steering is not None
            found = llama.last_steering.modality
            require(found == expected, f"found {found}, expected {expected}")


def heard(subject: Subject) -> None:
    """Every text of a conversation changes what is read of it."""
    with closing(subject.steered(1, CLOSED)) as llama:

        def t(
            system: str = "Be kind.", first: str = "One?", said: str = "Two.", last: str = "Why?"
        ) -> float:
            llama.reset()
            roles = {"role": "system", "content": system}
            shown = user(first, *subject.pictures(1))
            say(llama, [roles, shown, assistant(said), user(last)])
            assert llama.last_steering is not None
            return llama.last_steering.t

        plain = t()
        changed = [t(system="Be rude."), t(first="Four?"), t(said="Five."), t(last="Where?")]
        require(len({plain, *changed}) == 5, "a text changes nothing")
        require(t() == plain, "the same conversation is read otherwise")


def reuse(subject: Subject) -> None:
    """With `keep_turns`, later turns decode no picture that the context holds (where windows slide,
    unless they show one themselves)."""
    if subject.family.text_only:
        raise NotHere("text alone")
    with (
        closing(subject.steered(1, CLOSED, keep_turns=True)) as llama,
        closing(subject.steered(1, CLOSED)) as afresh,
    ):
        decoded: list[int] = []
        projector: Any = llama.projector
        original = projector.decode
        projector.decode = lambda *a, **k: decoded.append(1) or original(*a, **k)
        counts, there = [], []

        def pieces(messages: Messages) -> int:
            return sum(not chunk.is_text for chunk in llama.chunks(messages))

        for messages in subject.conversation():
            decoded.clear()
            alike(say(llama, messages), say(afresh, messages), "logits")
            counts.append(len(decoded))
            apart = [pieces(alone) for _, alone in each_isolated(messages, 16)]
            there.append((pieces(messages), *apart))
        (first,), (both, *apart), _ = there
        expected = [first, both - first + sum(apart), 0]
        # Sliding windows that were put back hold no more than the windows.
        again = lib.llama_model_n_swa(llama.model) and counts[1] == expected[1] + first
        expected[1] += first if again else 0
        require(counts == expected, f"decoded {counts} of {there} pieces")


def apart(subject: Subject) -> None:
    """Of several pictures, each is judged as it is alone, without those of earlier turns."""
    if subject.family.text_only:
        raise NotHere("text alone")
    _, messages, _ = subject.conversation()
    with (
        closing(subject.steered(1, CLOSED)) as llama,
        closing(subject.steered(1, CLOSED, keep_turns=True)) as keeping,
        closing(subject.steered(1, CLOSED)) as afresh,
    ):
        say(keeping, messages[:1])
        earlier = [{**messages[0], "content": messages[0]["content"][-1:]}, messages[1]]
        for one in (llama, keeping):
            say(one, messages)
            seen = one.steerer.turns.reply.isolated.seen or ()
            require(len(seen) == 2, f"{len(seen)} of 2 pictures were judged alone")
            for place, content in enumerate(messages[-1]["content"][:-1]):
                text = messages[-1]["content"][-1]
                say(afresh, [*earlier, {"role": "user", "content": [content, text]}])
                alone, expected = (
                    seen[place],
                    Seen(afresh.steerer.reader.states, afresh.context.modality, place + 1),
                )
                require(alone.picture == expected.picture, f"picture {alone.picture}")
                require(alone.modality == expected.modality, f"modality {alone.modality}")
                alike(alone.states[1], expected.states[1], f"state of picture {place + 1}")


def refused(attempt: Callable[[], object], reason: str) -> str:
    """``attempt`` is refused for ``reason``; what was said."""
    try:
        attempt()
    except ModelError as error:
        require(reason in str(error), f"refused, but not for that: {error}")
        return str(error)
    raise AssertionError("it is not refused")


def refused_at_load(subject: Subject) -> str:
    """What cannot be steered is refused when it is loaded, by what its graph has."""
    given = any_vector(subject)

    def load(way: Any) -> None:
        SteeredLlama(subject.model, vector=given, mmproj=subject.mmproj, way=way, n_ctx=512,
                     verbose=False).close()  # fmt: skip

    reason = subject.family.refused
    said = refused(lambda: load("inline"), reason)
    refused(lambda: load("cvec"), "recurrent" if subject.family.hybrid else reason)
    return said.partition("cannot be steered: ")[2]


RUNTIME: dict[str, Check] = {
    "probe": probe,
    "closed gate": closed,
    "open gate": opened,
    "next turn": next_turn,
    "cvec": cvec,
    "small batches": batches,
    "flash attention": flash_attention,
    "q8_0 cache": quantized_cache,
    "last block": last_block,
    "modality": modality,
    "heard": heard,
    "kept turns": reuse,
    "pictures apart": apart,
}
