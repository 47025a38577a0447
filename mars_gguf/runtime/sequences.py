"""Many prompts as sequences of one unified KV cache, decoded up to their last tokens: what several
begin with, pictures too, only once.

In memories that cannot share a token (recurrent and hybrid ones), only what all begin with is
shared. The beginning of the last prompt stays for the next group.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError
from mars_gguf.runtime.checkpoints import partial_state
from mars_gguf.runtime.model import TappedLlama
from mars_gguf.runtime.mtmd import Chunk, MediaChunk
from mars_gguf.runtime.tap import Rows

MAX_SEQUENCES = 32
MAX_STATES = 512 << 20  # bytes of recurrent states, one for each sequence and each copy of one
N_BATCH = 512

Entry = tuple[int, int, tuple[int, ...], bool]
"""Of a batch: token, position, the sequences it belongs to, whether logits are wanted."""

Follow = Callable[[int, list[int]], Sequence[int] | None]
"""Given a reply by its number and its tokens so far, of which it may take the last one back: the
tokens that are put after them unasked, or None where the reply ends."""


@dataclass
class CachedPrompt:
    """A prompt in the cache: everything but its last run of text, and that. ``opened``: it ends
    within a thought."""

    head: list[Chunk]
    tail: tuple[int, ...]  # at least one token
    number: int = 0  # in the context
    n_past: int = 0
    opened: bool = False

    def beginning(self, n_chunks: int) -> tuple[Any, ...]:
        """What the first chunks of the head are; equal if and only if they are the same."""
        return tuple(c if isinstance(c, tuple) else c.identity for c in self.head[:n_chunks])

    @property
    def n_cells(self) -> int:
        """Cells of the context that it takes: with M-RoPE, more than positions."""
        return len(self.tail) + sum(map(n_tokens, self.head))


def n_tokens(chunk: Chunk) -> int:
    """Cells that a chunk takes."""
    return len(chunk) if isinstance(chunk, tuple) else chunk.n_tokens


def n_sequences(llama: TappedLlama) -> int:
    """How many prompts to decode at once: MAX_SEQUENCES, fewer where their recurrent states and
    those of their copies would take more than MAX_STATES bytes. The context is empty afterwards."""
    if llama.memory_can_rewind():
        return MAX_SEQUENCES
    llama.eval([max(llama.token_bos(), 0)])
    size = len(partial_state(llama.ctx))
    llama.reset()
    return max(1, min(MAX_SEQUENCES, MAX_STATES // (2 * size)))


class Decoder:
    """Decodes batches of tokens and of pictures' embeddings, of several sequences."""

    def __init__(self, llama: TappedLlama) -> None:
        self.llama = llama
        self._vocab = lib.llama_model_get_vocab(llama.model)
        self._batch: Any = lib.llama_batch_init(N_BATCH, 0, MAX_SEQUENCES)
        self._n_embd_input = lib.llama_model_n_embd_inp(llama.model)
        self._embedded: Any = lib.llama_batch_init(N_BATCH, self._n_embd_input, 1)

    @property
    def memory(self) -> Any:
        """That of the context."""
        return lib.llama_get_memory(self.llama.ctx)

    @property
    def n_sequences(self) -> int:
        """How many prompts the context has sequences for, each beside a copy."""
        return int(lib.llama_n_seq_max(self.llama.ctx)) // 2

    def close(self) -> None:
        """Free the batches."""
        if self._batch is not None:
            lib.llama_batch_free(self._batch)
            lib.llama_batch_free(self._embedded)
            self._batch = self._embedded = None

    def last_tokens(self, prompts: Sequence[CachedPrompt]) -> Rows:
        """Decode the last token of every prompt on a copy of its sequence, all in one batch: the
        logits, [n, n_vocab]. The prompts stay as they are."""
        with self._copies(prompts) as numbers:
            return self._last_tokens(prompts, numbers)

    def replies(
        self,
        prompts: Sequence[CachedPrompt],
        n_tokens: int,
        first: AbstractContextManager[object],
        follow: Follow | None = None,
    ) -> list[list[int]]:
        """The first ``n_tokens`` tokens of the greedy reply to every prompt, fewer where it ends;
        with ``follow``, as many as that says. The last tokens of the prompts are decoded within
        ``first``, as `last_tokens` does, those that follow outside it. The prompts stay as they
        are."""
        replies: list[list[int]] = [[] for _ in prompts]
        follow = follow or self._up_to(n_tokens)
        with self._copies(prompts) as numbers:
            with first:
                logits = self._last_tokens(prompts, numbers)
            going = list(range(len(prompts)))
            while True:
                before: list[Entry] = []
                last: list[Entry] = []
                for i, token in zip(list(going), logits.argmax(-1).tolist(), strict=True):
                    known = len(replies[i])
                    replies[i].append(token)
                    put = follow(i, replies[i])
                    if put is None:
                        going.remove(i)
                        continue
                    replies[i] += put
                    new = enumerate(replies[i][known:], prompts[i].n_past + 1 + known)
                    *some, (position, final) = new
                    before += [(t, p, (numbers[i],), False) for p, t in some]
                    last.append((final, position, (numbers[i],), True))
                if not going:
                    return replies
                self.text(before)
                self.text(last)
                logits = self._logits(len(last))

    def ends(self, token: int) -> bool:
        """Whether a token ends a reply."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def _up_to(self, n_tokens: int) -> Follow:
        def follow(_number: int, reply: list[int]) -> Sequence[int] | None:
            return None if self.ends(reply[-1]) or len(reply) == n_tokens else ()

        return follow

    @contextmanager
    def _copies(self, prompts: Sequence[CachedPrompt]) -> Iterator[list[int]]:
        """Copies of the prompts' sequences, by their numbers."""
        numbers = [self.n_sequences + i for i in range(len(prompts))]
        try:
            for prompt, number in zip(prompts, numbers, strict=True):
                lib.llama_memory_seq_cp(self.memory, prompt.number, number, -1, -1)
            yield numbers
        finally:
            for number in numbers:
                lib.llama_memory_seq_rm(self.memory, number, -1, -1)

    def _last_tokens(self, prompts: Sequence[CachedPrompt], numbers: Sequence[int]) -> Rows:
        pairs = zip(prompts, numbers, strict=True)
        self.text([(prompt.tail[-1], prompt.n_past, (number,), True) for prompt, number in pairs])
        return self._logits(len(prompts))

    def _logits(self, n: int) -> Rows:
        """Those of the last batch, [n, n_vocab]."""
        rows = [lib.llama_get_logits_ith(self.llama.ctx, i) for i in range(n)]
        return np.stack([np.ctypeslib.as_array(row, (self.llama.n_vocab(),)) for row in rows])

    def text(self, entries: Sequence[Entry]) -> None:
        """Decode tokens, at most N_BATCH at a time."""
        most = min(N_BATCH, lib.llama_n_batch(self.llama.ctx))
        for start in range(0, len(entries), most):
            self._fill(entries[start : start + most])
            self.decode(self._batch)

    def pictures(self, pictures: Sequence[tuple[CachedPrompt, MediaChunk]]) -> None:
        """Decode a picture of each sequence, several in a batch where that gives the same."""
        projector, batch = self.llama.projector, self._embedded
        assert projector is not None
        batch.n_tokens = 0
        for sequence, chunk in pictures:
            if projector.decodes_alone(chunk) or chunk.n_tokens > N_BATCH:
                sequence.n_past = self.picture(sequence, chunk)
                continue
            if batch.n_tokens + chunk.n_tokens > N_BATCH:
                self.decode(batch)
                batch.n_tokens = 0
            self._append(sequence, chunk)
        if batch.n_tokens:
            self.decode(batch)

    def picture(self, sequence: CachedPrompt, chunk: MediaChunk) -> int:
        """Decode a picture alone, in libmtmd's way; the position after it."""
        assert self.llama.projector is not None
        try:
            return self.llama.projector.decode(
                self.llama.ctx, chunk, sequence.n_past, sequence.number
            )
        except ValueError as error:
            raise ModelError(f"{error}. Raise --ctx-size.") from error

    def decode(self, batch: Any) -> None:
        """Decode a batch of llama.cpp's. Raises ModelError if llama.cpp refuses it."""
        code = lib.llama_decode(self.llama.ctx, batch)
        if code != 0:
            raise ModelError(f"llama_decode returned {code} for {batch.n_tokens} tokens")

    def _fill(self, entries: Sequence[Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for k, (token, position, sequences, wants_logits) in enumerate(entries):
            batch.token[k], batch.pos[k], batch.logits[k] = token, position, wants_logits
            batch.n_seq_id[k] = len(sequences)
            for j, sequence in enumerate(sequences):
                batch.seq_id[k][j] = sequence

    def _append(self, sequence: CachedPrompt, chunk: MediaChunk) -> None:
        """Put a picture's embeddings into the batch, at the positions that follow."""
        assert self.llama.projector is not None
        embeddings, batch = self.llama.projector.encode(chunk), self._embedded
        start = ctypes.addressof(batch.embd.contents) + batch.n_tokens * 4 * self._n_embd_input
        ctypes.memmove(start, embeddings.ctypes.data, embeddings.nbytes)
        for k in range(batch.n_tokens, batch.n_tokens + chunk.n_tokens):
            batch.pos[k], batch.logits[k] = sequence.n_past, False
            batch.n_seq_id[k], batch.seq_id[k][0] = 1, sequence.number
            sequence.n_past += 1
        batch.n_tokens += chunk.n_tokens


class Prefill:
    """Brings groups of sequences into the cache, one group after another."""

    def __init__(self, llama: TappedLlama, decoder: Decoder) -> None:
        self.llama, self.decoder = llama, decoder
        self._last: CachedPrompt | None = None  # of the group before, if others can begin with it

    @property
    def memory(self) -> Any:
        """That of the context."""
        return self.decoder.memory

    def forget(self) -> None:
        """Let go of what the next group could begin with."""
        self._last = None

    def run(self, group: list[CachedPrompt]) -> None:
        """Decode a group, all but the last tokens."""
        self._empty(group)
        self._decode(group)

    def shares_tokens(self, group: Sequence[CachedPrompt]) -> bool:
        """Whether any number of tokens that these begin with can be shared."""
        return self.llama.memory_can_rewind() and not any(s.head for s in group)

    def _empty(self, group: list[CachedPrompt]) -> None:
        """Empty the context, but for what ``group`` begins with like the group before ended."""
        last, self._last = self._last, None
        if last is None or not self.shares_tokens(group):
            lib.llama_memory_clear(self.memory, False)
            for sequence in group:
                sequence.n_past = 0
            return
        spare = self.decoder.n_sequences
        lib.llama_memory_seq_cp(self.memory, last.number, spare, -1, -1)
        lib.llama_memory_seq_keep(self.memory, spare)
        for sequence in group:
            sequence.n_past = n_alike(sequence.tail[:-1], last.tail[:-1])
            if sequence.n_past:
                lib.llama_memory_seq_cp(self.memory, spare, sequence.number, 0, sequence.n_past)
        lib.llama_memory_seq_rm(self.memory, spare, -1, -1)

    def _decode(self, group: list[CachedPrompt]) -> None:
        """Decode what is not yet decoded of each sequence, all but the last token."""
        if self.shares_tokens(group):
            missing = {s.number: (s.tail[:-1], s.n_past) for s in group}
            self.decoder.text(_distinct_prefixes(missing))
            for sequence in group:
                sequence.n_past = len(sequence.tail) - 1
            self._last = group[-1] if group else None
            return
        shared = self._share_prefix(group)
        for sequence in group:
            sequence.n_past = shared
        for depth in range(max((len(s.head) for s in group), default=0)):
            self._decode_chunk([s for s in group if len(s.head) > depth], depth, shared)
        entries: list[Entry] = []
        for sequence in group:
            skip = 0 if sequence.head else shared
            entries += _entries(sequence, sequence.tail[skip:-1])
        self.decoder.text(entries)

    def _decode_chunk(self, group: list[CachedPrompt], depth: int, shared: int) -> None:
        """Decode one chunk of the head of each sequence, those before it being decoded: for
        sequences that have been the same so far, once."""
        alike: dict[tuple[Any, ...], list[CachedPrompt]] = {}
        for sequence in group:
            alike.setdefault(sequence.beginning(depth + 1), []).append(sequence)
        entries: list[Entry] = []
        pictures: list[tuple[CachedPrompt, MediaChunk]] = []
        for first, *_ in alike.values():
            chunk = first.head[depth]
            if isinstance(chunk, tuple):
                entries += _entries(first, chunk[shared:] if depth == 0 else chunk)
            else:
                pictures.append((first, chunk))
        self.decoder.text(entries)
        if pictures:
            self.decoder.pictures(pictures)
        for first, *others in alike.values():
            for other in others:
                lib.llama_memory_seq_cp(self.memory, first.number, other.number, -1, -1)
                other.n_past = first.n_past

    def _share_prefix(self, group: list[CachedPrompt]) -> int:
        """Decode what all prompts begin with into every sequence; return its length."""
        first = [s.head[0] if s.head else s.tail[:-1] for s in group]
        texts = [tokens for tokens in first if isinstance(tokens, tuple)]
        if len(group) < 2 or len(texts) < len(group):
            return 0
        shared = min(n_alike(texts[0], other) for other in texts[1:])
        if shared:
            leader = group[0].number
            self.decoder.text([(t, p, (leader,), False) for p, t in enumerate(texts[0][:shared])])
            for sequence in group[1:]:
                lib.llama_memory_seq_cp(self.memory, leader, sequence.number, -1, -1)
        return shared


def _entries(sequence: CachedPrompt, tokens: tuple[int, ...]) -> list[Entry]:
    """Tokens that follow what is decoded of ``sequence``."""
    entries: list[Entry] = [
        (t, sequence.n_past + p, (sequence.number,), False) for p, t in enumerate(tokens)
    ]
    sequence.n_past += len(tokens)
    return entries


def n_alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


def _distinct_prefixes(sequences: Mapping[int, tuple[tuple[int, ...], int]]) -> list[Entry]:
    """What to decode for all ``sequences`` at once, by number its tokens and how many of them are
    decoded: what several begin with, only once.

    By position, because sequences may share a token only as long as all before it was shared
    (src/llama-batch.cpp), in this batch and in those before.
    """
    owners: dict[tuple[int, ...], list[int]] = {}
    for number, (tokens, decoded) in sequences.items():
        for end in range(decoded + 1, len(tokens) + 1):
            owners.setdefault(tokens[:end], []).append(number)
    ordered = sorted(owners.items(), key=lambda item: len(item[0]))
    return [(prefix[-1], len(prefix) - 1, tuple(shared), False) for prefix, shared in ordered]
