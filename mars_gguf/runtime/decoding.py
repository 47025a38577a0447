"""Decodes prompts with pictures into the context of a SteeredLlama. Where a conversation shows
several, those of the last turn are decoded alone first, to see what the model makes of each: among
others it hardly shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from llama_cpp import Llama

from mars_gguf.runtime.chunks import Chunk, n_alike
from mars_gguf.runtime.judging import NOT_ISOLATED, UNSEEN, Isolated, Seen
from mars_gguf.runtime.messages import Messages, each_isolated
from mars_gguf.runtime.mtmd import chunks_of
from mars_gguf.runtime.template import Rendered
from mars_gguf.runtime.turns import ChatPrompt

MOST_ISOLATED = 16  # prompts that a turn is shown in, each with a picture alone
MOST_TEXT = 4  # times the length of the whole prompt that those may read of text, all together
Render = Callable[..., Rendered]


def decode_prompt(
    llama: Llama, render: Render, messages: Messages, *, isolates: bool
) -> ChatPrompt:
    """Decode the prompt of ``messages`` into the context, all but its last run of text; with
    ``isolates``, with each of several pictures alone before, if anything steers. Raises ValueError
    if it does not fit the context."""
    context, projector = llama.context, llama.projector
    read = cache(projector.read)  # what is judged alone is what is shown: it is decoded once

    def cut(rendered: Rendered) -> list[Chunk]:
        return chunks_of(llama, projector, rendered, read)

    whole = render(messages)
    chunks = cut(whole)
    _require_room(llama, 0, sum(chunk.n_positions for chunk in chunks))
    prompts = list(each_isolated(messages, most_isolated(chunks))) if isolates else []
    with projector.encoded.keeping_all():
        isolated = _isolate(llama, prompts, lambda shown: cut(render(shown)))
        last, held = _decode_head(llama, chunks, reuses=context.keep_turns)
    again = max(0, held - context.n_tokens)  # tokens that the context held
    if again:
        llama.eval(last.tokens[:again])
    context.keep()
    return ChatPrompt(whole.begun, [*context.tokens, *last.tokens[again:]], isolated)


def most_isolated(chunks: list[Chunk]) -> int:
    """In how many prompts the pictures of one may be shown alone. Each reads again what stands
    after the first picture: a long text there would make many pictures cost many times the
    prompt."""
    first = next((i for i, chunk in enumerate(chunks) if not chunk.is_text), len(chunks))
    again = sum(chunk.n_tokens for chunk in chunks[first:] if chunk.is_text)
    whole = sum(chunk.n_tokens for chunk in chunks)
    return min(MOST_ISOLATED, MOST_TEXT * whole // max(1, again))


def _isolate(
    llama: Llama,
    prompts: list[tuple[int, list[dict[str, Any]]]],
    cut: Callable[[Messages], list[Chunk]],
) -> Isolated:
    """Read the states of ``prompts``, which show one of several pictures alone."""
    if not prompts:
        return NOT_ISOLATED
    if not llama.policies:
        return UNSEEN
    began, encoding = time.perf_counter(), llama.projector.seconds
    seen: list[Seen] = []
    with llama.context.aside():
        for picture, messages in prompts:
            # Text before the pictures is the same in all: the others go on from there.
            reuses, first = llama.context.keep_turns or bool(seen), not seen
            last, _ = _decode_head(llama, cut(messages), reuses=reuses, keeps_text=first)
            llama.eval(last.tokens)
            seen.append(Seen(llama.steerer.reader.states, llama.context.modality, picture))
    # The pictures would be encoded in any case.
    seconds = time.perf_counter() - began - (llama.projector.seconds - encoding)
    return Isolated(tuple(seen), seconds)


def _decode_head(
    llama: Llama, chunks: list[Chunk], *, reuses: bool, keeps_text: bool = False
) -> tuple[Chunk, int]:
    """Decode a prompt, all but its last run of text, and return what is left of that, and how many
    positions the context held of the prompt. ``reuses``: go on from those. ``keeps_text``: let
    others go on from where the first picture begins."""
    context = llama.context
    held, rest = _held(llama, chunks, context.n_reusable) if reuses else (0, chunks)
    if context.rewind(held) < held:
        _, rest = _held(llama, chunks, context.n_tokens)
    *head, last = rest
    for chunk in head:
        _require_room(llama, context.n_tokens, chunk.n_tokens)
        if chunk.is_text:
            llama.eval(chunk.tokens)
            continue
        if keeps_text and context.n_tokens and not context.memory.rewinds_far:
            context.memory.keep(context.n_tokens)
        keeps_text = False
        after = llama.projector.decode(llama.ctx, chunk, context.n_tokens)
        context.announce(chunk.modality, chunk.identity)
        llama.n_tokens = after
    _require_room(llama, context.n_tokens, last.n_tokens)
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
