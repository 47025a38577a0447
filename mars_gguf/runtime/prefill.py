"""Many prompts as sequences of one unified KV cache, decoded up to their last tokens: what several
begin with, pictures too, only once.

The last prompt of a group stays for what the next group begins with. In memories that cannot share
a token (recurrent and hybrid ones), only what all of a group begin with is shared, and what is the
same up to the end of a run of text or of a picture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import ModelError
from mars_gguf.runtime.chunks import Chunk, n_alike, text_chunk
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.tap import Rows

MAX_SEQUENCES = 32
MAX_COPIES = 64  # of sequences: few rows take more time each than many
MAX_STATES = 512 << 20  # bytes of recurrent states, one for each sequence and each copy of one
N_BATCH = 512

Entry = tuple[int, int, tuple[int, ...], bool]
"""An entry of a batch: token, position, the sequences it belongs to, whether logits are wanted."""

Follow = Callable[[int, list[int]], Sequence[int] | None]
"""Given a reply by its number and its tokens so far, of which it may take the last one back: the
tokens that are put after them unasked, or None where the reply ends."""


@dataclass
class CachedPrompt:
    """A prompt in the cache: everything but its last run of text, and that. ``begun``: it ends
    within a thought."""

    head: list[Chunk]
    tail: tuple[int, ...]  # at least one token
    number: int = 0  # in the context
    n_past: int = 0
    begun: bool = False
    n_runs: int = 0  # that are decoded
    n_decoded: int = 0  # tokens of the run after those

    @cached_property
    def runs(self) -> list[Chunk]:
        """The runs that come before its last token."""
        return [*self.head, text_chunk(self.tail[:-1])]

    @property
    def next(self) -> Chunk:
        """The first run that is not decoded, or not to its end."""
        return self.runs[self.n_runs]

    def beginning(self, n_runs: int) -> tuple[Any, ...]:
        """A key of its first runs; equal if and only if they are the same."""
        return tuple(run.identity for run in self.runs[:n_runs])

    def shared(self, other: CachedPrompt) -> tuple[int, int]:
        """How many runs it begins with like another, and how many tokens of the run after those."""
        for n_runs, (run, its) in enumerate(zip(self.runs, other.runs, strict=False)):
            if run.identity != its.identity:
                return n_runs, n_alike(run.tokens, its.tokens)
        return min(len(self.runs), len(other.runs)), 0

    @property
    def n_cells(self) -> int:
        """Cells of the context that it takes: with M-RoPE, more than positions."""
        return len(self.tail) + sum(chunk.n_tokens for chunk in self.head)


def n_prompts_and_copies(llama: SteeredLlama) -> tuple[int, int]:
    """How many prompts to decode at once, and how many copies of their sequences; with recurrent
    states one of each, of at most MAX_STATES bytes. The context is empty afterwards."""
    if llama.context.memory.rewinds:
        return MAX_SEQUENCES, MAX_COPIES
    llama.eval([max(llama.token_bos(), 0)])
    size = llama.context.memory.size()
    llama.reset()
    n = max(1, min(MAX_SEQUENCES, MAX_STATES // (2 * size)))
    return n, n


class Decoder:
    """Decodes batches of tokens and of pictures' embeddings, of several sequences: of
    ``n_sequences`` prompts, and of copies of those."""

    def __init__(self, llama: SteeredLlama, n_sequences: int) -> None:
        self.llama, self.n_sequences = llama, n_sequences
        self._vocab = lib.llama_model_get_vocab(llama.model)
        self._batch: Any = lib.llama_batch_init(N_BATCH, 0, MAX_SEQUENCES)
        self._n_embd_input = lib.llama_model_n_embd_inp(llama.model)
        self._embedded: Any = lib.llama_batch_init(N_BATCH, self._n_embd_input, 1)

    @property
    def memory(self) -> Any:
        """The memory of the context, as llama.cpp takes it."""
        return self.llama.context.memory.handle

    @property
    def n_copies(self) -> int:
        """How many copies of sequences the context has room for."""
        return int(lib.llama_n_seq_max(self.llama.ctx)) - self.n_sequences

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
        with ``follow``, as many as that says. The last tokens of the prompts alone are decoded
        within ``first``. The prompts stay as they are."""
        replies: list[list[int]] = [[] for _ in prompts]

        def up_to(_number: int, reply: list[int]) -> Sequence[int] | None:
            return None if self.ends(reply[-1]) or len(reply) == n_tokens else ()

        follow = follow or up_to
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
        batch, most = self._batch, min(N_BATCH, lib.llama_n_batch(self.llama.ctx))
        for start in range(0, len(entries), most):
            some = entries[start : start + most]
            batch.n_tokens = len(some)
            for k, (token, position, sequences, wants_logits) in enumerate(some):
                batch.token[k], batch.pos[k], batch.logits[k] = token, position, wants_logits
                batch.n_seq_id[k] = len(sequences)
                for j, sequence in enumerate(sequences):
                    batch.seq_id[k][j] = sequence
            self.decode(batch)

    def pictures(self, pictures: Sequence[tuple[CachedPrompt, Chunk]]) -> None:
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

    def picture(self, sequence: CachedPrompt, chunk: Chunk) -> int:
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

    def _append(self, sequence: CachedPrompt, chunk: Chunk) -> None:
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

    def __init__(self, llama: SteeredLlama, decoder: Decoder) -> None:
        self.llama, self.decoder = llama, decoder
        self._last: CachedPrompt | None = None  # of the group before, if others can begin with it

    @property
    def shares_tokens(self) -> bool:
        """Whether any number of tokens that prompts begin with can be shared."""
        return self.llama.context.memory.rewinds

    def forget(self) -> None:
        """Let go of what the next group could begin with."""
        self._last = None

    def run(self, group: list[CachedPrompt]) -> None:
        """Decode a group of prompts that are not in the cache yet, all but the last tokens."""
        last, self._last = self._last, None
        if last is None:
            lib.llama_memory_clear(self.decoder.memory, False)
        else:
            self._begin_like(last, group)
        if not self.shares_tokens:
            self._share_prefix(group)
        for depth in range(max((len(s.runs) for s in group), default=0)):
            here = [s for s in group if s.n_runs == depth < len(s.runs)]
            pictures = [s for s in here if not s.next.is_text]
            self._texts([s for s in here if s.next.is_text])
            self._pictures(pictures)
        if self.shares_tokens and group:
            self._last = group[-1]

    def _begin_like(self, last: CachedPrompt, group: list[CachedPrompt]) -> None:
        """Empty the context, but for what each of ``group`` begins with like ``last``."""
        spare, memory = self.decoder.n_sequences, self.decoder.memory
        lib.llama_memory_seq_cp(memory, last.number, spare, -1, -1)
        lib.llama_memory_seq_keep(memory, spare)
        for sequence in group:
            sequence.n_runs, sequence.n_decoded = sequence.shared(last)
            alike = last.runs[: sequence.n_runs]
            sequence.n_past = sequence.n_decoded + sum(run.n_positions for run in alike)
            if sequence.n_past:
                lib.llama_memory_seq_cp(memory, spare, sequence.number, 0, sequence.n_past)
        lib.llama_memory_seq_rm(memory, spare, -1, -1)

    def _texts(self, sequences: Sequence[CachedPrompt]) -> None:
        """Decode the next run of each sequence, tokens: what several that have been the same so far
        begin it with, or where tokens cannot be shared, runs that are the same, once."""
        sets = _alike(sequences, 0 if self.shares_tokens else 1)
        entries: list[Entry] = []
        for some in sets:
            owners = some if self.shares_tokens else some[:1]
            missing = {s.number: (s.next.tokens, s.n_decoded) for s in owners}
            entries += _distinct_prefixes(missing, some[0].n_past - some[0].n_decoded)
        self.decoder.text(entries)
        for sequence in sequences:
            sequence.n_past += sequence.next.n_tokens - sequence.n_decoded
            sequence.n_runs, sequence.n_decoded = sequence.n_runs + 1, 0
        if not self.shares_tokens:
            self._copy(sets)

    def _pictures(self, sequences: Sequence[CachedPrompt]) -> None:
        """Decode the next run of each sequence, a picture: once for those that begin the same."""
        if not sequences:
            return
        sets = _alike(sequences, 1)
        self.decoder.pictures([(first, first.next) for first, *_ in sets])
        for first, *others in sets:
            for sequence in (first, *others):
                sequence.n_past, sequence.n_runs = first.n_past, sequence.n_runs + 1
        self._copy(sets)

    def _copy(self, sets: Sequence[Sequence[CachedPrompt]]) -> None:
        """Give the others of each set the cells of the first."""
        for first, *others in sets:
            for other in others:
                lib.llama_memory_seq_cp(self.decoder.memory, first.number, other.number, -1, -1)

    def _share_prefix(self, group: Sequence[CachedPrompt]) -> None:
        """Decode what all prompts begin with, tokens, into every sequence."""
        texts = [s.runs[0].tokens for s in group]
        if len(group) < 2 or not all(s.runs[0].is_text for s in group):
            return
        shared = min(n_alike(texts[0], other) for other in texts[1:])
        leader = group[0].number
        self.decoder.text(_distinct_prefixes({leader: (texts[0][:shared], 0)}))
        for sequence in group:
            sequence.n_past = sequence.n_decoded = shared
        self._copy([group])


def _alike(sequences: Sequence[CachedPrompt], more: int) -> list[list[CachedPrompt]]:
    """The sequences, those that are the same in what is decoded and ``more`` runs in one set."""
    found: dict[tuple[Any, ...], list[CachedPrompt]] = {}
    for sequence in sequences:
        found.setdefault(sequence.beginning(sequence.n_runs + more), []).append(sequence)
    return list(found.values())


def _distinct_prefixes(
    sequences: Mapping[int, tuple[tuple[int, ...], int]], start: int = 0
) -> list[Entry]:
    """The entries to decode for all ``sequences`` at once: what several begin with, only once. By
    number, ``sequences`` are tokens from position ``start`` on, and how many of them are decoded.

    By position, because sequences may share a token only as long as all before it was shared
    (src/llama-batch.cpp), in this batch and in those before.
    """
    owners: dict[tuple[int, ...], list[int]] = {}
    for number, (tokens, decoded) in sequences.items():
        for end in range(decoded + 1, len(tokens) + 1):
            owners.setdefault(tokens[:end], []).append(number)
    ordered = sorted(owners.items(), key=lambda item: len(item[0]))
    return [(p[-1], start + len(p) - 1, tuple(numbers), False) for p, numbers in ordered]
