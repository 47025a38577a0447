"""Lays prompts with pictures into the context of a SteeredLlama. Where a turn shows
several, each is laid alone first, to see what the model makes of it: among others it hardly shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

from llama_cpp import Llama

from mars_gguf.runtime.chunks import Chunk, n_alike
from mars_gguf.runtime.judging import NOTHING_APART, Apart, Seen
from mars_gguf.runtime.messages import Messages, each_apart
from mars_gguf.runtime.mtmd import Load, chunks_of
from mars_gguf.runtime.template import Rendered
from mars_gguf.runtime.turns import Laid

Render = Callable[..., Rendered]


def lay(llama: Llama, render: Render, messages: Messages, *, apart: bool) -> Laid:
    """Lay the prompt of ``messages`` into the context, all but its last run of text; with
    ``apart``, see it with each of several pictures alone before. Raises ValueError if it does not
    fit the context."""
    load = cache(llama.projector.load)  # what is judged alone is what is shown: it is read once
    whole = render(messages)
    chunks = chunks_of(llama, llama.projector, whole, load)
    _require_room(llama, 0, sum(chunk.n_positions for chunk in chunks))
    seen = _see_apart(llama, render, messages, load) if apart else NOTHING_APART
    last, held = _lay_head(llama, chunks, kept=llama.context.keep_turns)
    again = max(0, held - llama.context.n_tokens)  # of what the context held
    if again:
        llama.eval(last.tokens[:again])
    llama.context.keep()
    return Laid(whole.begun, [*llama.context.tokens, *last.tokens[again:]], seen)


def _see_apart(llama: Llama, render: Render, messages: Messages, load: Load) -> Apart:
    """See the prompt with each of several pictures alone. Nothing of that outlasts it in a context
    whose turns are not kept."""
    began, seen = time.perf_counter(), list[Seen]()
    for picture, shown in each_apart(messages):
        chunks = chunks_of(llama, llama.projector, render(shown), load)
        # What comes before the pictures is the same in all.
        last, _ = _lay_head(llama, chunks, kept=llama.context.keep_turns or bool(seen))
        llama.eval(last.tokens)
        seen.append(Seen(llama.steerer.reader.states, llama.context.modality, picture))
    return Apart(tuple(seen), time.perf_counter() - began)


def _lay_head(llama: Llama, chunks: list[Chunk], *, kept: bool) -> tuple[Chunk, int]:
    """Lay a prompt into the context, all but its last run of text, and return what is left of that,
    and how many positions the context held of the prompt. ``kept``: it goes on from those."""
    context = llama.context
    held, rest = _held(llama, chunks, context.n_reusable) if kept else (0, chunks)
    end = context.rewind(held)
    if end < held:
        _, rest = _held(llama, chunks, end)
    *head, last = rest
    for chunk in head:
        _require_room(llama, llama.n_tokens, chunk.n_tokens)
        if chunk.is_text:
            llama.eval(chunk.tokens)
        else:
            after = llama.projector.decode(llama.ctx, chunk, context.n_tokens)
            context.announce(chunk.modality, chunk.identity)
            llama.n_tokens = after
    _require_room(llama, llama.n_tokens, last.n_tokens)
    return last, held


def _held(llama: Llama, chunks: list[Chunk], end: int) -> tuple[int, list[Chunk]]:
    """How many positions of the context up to ``end`` the prompt begins with, but for its last
    token, and what follows them."""
    position, known = 0, llama.context.tokens
    for i, chunk in enumerate(chunks):
        if chunk.is_text:
            last = i == len(chunks) - 1
            same = n_alike(chunk.tokens[:-1] if last else chunk.tokens, known[position:end])
            position += same
            if same < chunk.n_tokens:
                return position, [chunk.after(same), *chunks[i + 1 :]]
            continue
        after = position + chunk.n_positions
        ids = llama.input_ids[position:after]
        if after > end or not llama.context.marks.stand_for(chunk, ids):
            return position, chunks[i:]
        position = after
    raise AssertionError("a prompt ends with text")


def _require_room(llama: Llama, n_tokens: int, more: int) -> None:
    if n_tokens + more > llama.n_ctx():
        raise ValueError(f"Prompt exceeds n_ctx: {n_tokens + more} > {llama.n_ctx()}")
