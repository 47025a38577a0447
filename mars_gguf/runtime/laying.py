"""Lays prompts with pictures into the context of a SteeredLlama. Where a conversation shows
several, those of the last turn are laid alone first, to see what the model makes of each: among
others it hardly shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from llama_cpp import Llama

from mars_gguf.runtime.chunks import Chunk, n_alike
from mars_gguf.runtime.judging import NOT_ISOLATED, UNSEEN, Isolated, Seen
from mars_gguf.runtime.messages import Messages, each_apart
from mars_gguf.runtime.mtmd import chunks_of
from mars_gguf.runtime.template import Rendered
from mars_gguf.runtime.turns import Laid

MOST_APART = 16  # prompts that a turn is seen apart in
MOST_TEXT = 4  # times the length of the whole prompt that those may read of text, all together
Render = Callable[..., Rendered]


def lay(llama: Llama, render: Render, messages: Messages, *, apart: bool) -> Laid:
    """Lay the prompt of ``messages`` into the context, all but its last run of text; with
    ``apart``, see it with each of several pictures alone before, if anything steers. Raises
    ValueError if it does not fit the context."""
    context, projector = llama.context, llama.projector
    load = cache(projector.load)  # what is judged alone is what is shown: it is read once

    def cut(rendered: Rendered) -> list[Chunk]:
        return chunks_of(llama, projector, rendered, load)

    whole = render(messages)
    chunks = cut(whole)
    _require_room(llama, 0, sum(chunk.n_positions for chunk in chunks))
    alone = list(each_apart(messages, most_apart(chunks))) if apart else []
    with projector.encoded.keeping_all():
        seen = _see_apart(llama, alone, lambda shown: cut(render(shown)))
        last, held = _lay_head(llama, chunks, kept=context.keep_turns)
    again = max(0, held - context.n_tokens)  # of what the context held
    if again:
        llama.eval(last.tokens[:again])
    context.keep()
    return Laid(whole.begun, [*context.tokens, *last.tokens[again:]], seen)


def most_apart(chunks: list[Chunk]) -> int:
    """How many prompts the pictures of one may be seen apart in. Each reads again what stands after
    the first picture: a long text there would make many pictures cost many times the prompt."""
    first = next((i for i, chunk in enumerate(chunks) if not chunk.is_text), len(chunks))
    again = sum(chunk.n_tokens for chunk in chunks[first:] if chunk.is_text)
    whole = sum(chunk.n_tokens for chunk in chunks)
    return min(MOST_APART, MOST_TEXT * whole // max(1, again))


def _see_apart(
    llama: Llama,
    prompts: list[tuple[int, list[dict[str, Any]]]],
    cut: Callable[[Messages], list[Chunk]],
) -> Isolated:
    """See prompts that show one of several pictures alone."""
    began, encoding = time.perf_counter(), llama.projector.seconds
    seen: list[Seen] = []
    if not prompts:
        return NOT_ISOLATED
    if not llama.policies:
        return UNSEEN
    with llama.context.aside():
        for picture, messages in prompts:
            # What comes before the pictures is the same in all.
            kept = llama.context.keep_turns or bool(seen)
            last, _ = _lay_head(llama, cut(messages), kept=kept, comes_back=not seen)
            llama.eval(last.tokens)
            seen.append(Seen(llama.steerer.reader.states, llama.context.modality, picture))
    # The pictures would be encoded in any case.
    seconds = time.perf_counter() - began - (llama.projector.seconds - encoding)
    return Isolated(tuple(seen), seconds)


def _lay_head(
    llama: Llama, chunks: list[Chunk], *, kept: bool, comes_back: bool = False
) -> tuple[Chunk, int]:
    """Lay a prompt into the context, all but its last run of text, and return what is left of that,
    and how many positions the context held of the prompt. ``kept``: it goes on from those.
    ``comes_back``: others will go on from where its first picture begins."""
    context = llama.context
    held, rest = _held(llama, chunks, context.n_reusable) if kept else (0, chunks)
    if context.rewind(held) < held:
        _, rest = _held(llama, chunks, context.n_tokens)
    *head, last = rest
    for chunk in head:
        _require_room(llama, llama.n_tokens, chunk.n_tokens)
        if chunk.is_text:
            llama.eval(chunk.tokens)
            continue
        if comes_back and context.n_tokens and not context.memory.rewinds_far:
            context.memory.keep(context.n_tokens)
        comes_back = False
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
