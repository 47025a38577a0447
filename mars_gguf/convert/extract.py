"""Hidden states of a GGUF model: many prompts at once, all blocks, with and without steering.

Prompts of one session are sequences of one unified KV cache. Everything but the last token of each
is decoded first, without a callback, at the speed of prefill; what several prompts begin with,
pictures too, is decoded once and shared (in memories that cannot share a token, only what all
begin with). Prompts that begin alike are side by side, so the beginning of a session's last prompt
stays for the next session; what a later one will need is kept. The last tokens are then decoded
together, one row a prompt, and that short decode is the one that is observed: as at run time, where
a steered last token is decoded alone. It can be repeated with another block steered, because each
time it runs on copies of the sequences; so recurrent models, which cannot rewind, work too.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_chat_format, mtmd_cpp
from llama_cpp import llama_cpp as lib
from llama_cpp._utils import suppress_stdout_stderr
from PIL import Image

from mars_gguf.convert.prompts import Prompt, Push
from mars_gguf.errors import ModelError
from mars_gguf.hooks import HookedLlama, LayerOutput, Rows, require_gguf
from mars_gguf.llama import fingerprint, load_mmproj
from mars_gguf.pictures import require_one_batch
from mars_gguf.vectors import ModelFingerprint

MAX_SEQUENCES = 32
N_BATCH = 512
MAX_EMBEDDINGS = 64 << 20  # bytes of encoded pictures that are kept
MAX_STATES = 128 << 20  # bytes of decoded prompts that are kept
# Every token attends over all cells of its session, other prompts' too. For small models that would
# cost more than the weights, which cost as much as attention over 12 x n_embd cells.
MAX_CELLS = 1.5  # x n_embd
MIN_CELLS = 256  # what llama.cpp attends over at least
Messages = list[dict[str, Any]]
Entry = tuple[int, int, tuple[int, ...], bool]
"""Of a batch: token, position, the sequences it belongs to, whether logits are wanted."""
# Where llama-cpp-python recognises a chat template it uses its own rendering, which differs, so
# that is what the runtime sees.
OWN_FORMATS: dict[str, llama_chat_format.ChatFormatter] = {
    "chatml": llama_chat_format.format_chatml,
    "mistral-instruct": llama_chat_format.format_mistral_instruct,
    "llama-3": llama_chat_format.format_llama3,
}


@dataclass(frozen=True)
class _Picture:
    """A media chunk (a copy, to be freed), and what it shows: a picture's hash and which slice of
    it; None if that cannot be told."""

    chunk: Any
    identity: tuple[bytes, int] | None


@dataclass
class _Sequence:
    head: list[tuple[int, ...] | Any]  # text tokens or pictures
    tail: tuple[int, ...]  # text tokens, at least one
    number: int = 0  # in the context
    n_past: int = 0

    def beginning(self, n_parts: int) -> tuple[Any, ...]:
        """What the first parts of the head are; equal if and only if they are the same. A picture
        that cannot be told from others is the same as itself alone."""
        return tuple(
            part if isinstance(part, tuple) else part.identity or id(part)
            for part in self.head[:n_parts]
        )

    @property
    def identity(self) -> tuple[Any, ...] | None:
        """What all tokens but the last are; None if it cannot be told."""
        if any(not isinstance(part, tuple) and part.identity is None for part in self.head):
            return None
        return (*self.beginning(len(self.head)), self.tail[:-1])


class Session:
    """Up to MAX_SEQUENCES prompts, decoded up to their last tokens."""

    def __init__(self, extractor: GgufExtractor, sequences: list[_Sequence]) -> None:
        self.extractor, self.sequences = extractor, sequences

    def observe(self, n_layer: int | None = None) -> tuple[Rows, Rows]:
        """Hidden states after every block (or the first ``n_layer``), [n, n_layer, n_embd], and
        logits of the first token, [n, n_vocab], of all prompts of the session."""
        n_layer = n_layer or self.extractor.n_layer
        states = np.empty((len(self.sequences), n_layer, self.extractor.n_embd), np.float32)

        def visit(output: LayerOutput) -> None:
            states[:, output.layer] = output.read()

        logits = self._decode_last(range(n_layer), visit)
        return states, logits

    def steered(self, layer: int, additions: Rows) -> Rows:
        """Logits of the first token, [n, n_vocab], with ``additions`` [n, n_embd] added to the
        output of block ``layer`` at the last token of each prompt."""
        (logits,) = self.steered_each([(layer, additions)])
        return logits

    def steered_each(self, pushes: Sequence[Push]) -> Iterator[Rows]:
        """For each (layer, additions) what ``steered`` gives; several of them in one decode."""
        n = len(self.sequences)
        taken = sum(self.extractor._cells(s) - 1 for s in self.sequences)  # M-RoPE: not positions
        free = self.extractor.n_cells - taken
        at_once = max(1, min(free, MAX_SEQUENCES) // n)
        for start in range(0, len(pushes), at_once):
            some = pushes[start : start + at_once]

            def visit(output: LayerOutput, some: Sequence[Push] = some) -> None:
                rows = output.read().reshape(len(some), n, -1)
                for copy, (layer, additions) in enumerate(some):
                    if layer == output.layer:
                        rows[copy] += additions
                output.write(0, rows.reshape(len(some) * n, -1))

            layers = sorted({layer for layer, _ in some})
            yield from np.split(self._decode_last(layers, visit, len(some)), len(some))

    def _decode_last(
        self, layers: Sequence[int], visit: Callable[[LayerOutput], None], copies: int = 1
    ) -> Rows:
        """Decode the last token of every sequence, all of them ``copies`` times; the logits,
        [copies * n, n_vocab]."""
        llama = self.extractor.llama
        memory = lib.llama_get_memory(llama.ctx)
        entries: list[Entry] = []
        missing = set(layers)

        def note(output: LayerOutput) -> None:
            visit(output)
            missing.discard(output.layer)

        try:
            for sequence in self.sequences * copies:
                number = MAX_SEQUENCES + len(entries)
                lib.llama_memory_seq_cp(memory, sequence.number, number, -1, -1)
                entries.append((sequence.tail[-1], sequence.n_past, (number,), True))
            with llama.tap.visiting(layers, self.extractor.n_embd, note):
                self.extractor.decode(entries)
            if missing:
                raise ModelError(
                    f"l_out-{min(missing)} was not seen: this architecture has no such node, or "
                    "the decode was cut short"
                )
            n_vocab = llama.n_vocab()
            rows = [lib.llama_get_logits_ith(llama.ctx, i) for i in range(len(entries))]
            return np.stack([np.ctypeslib.as_array(row, (n_vocab,)) for row in rows])
        finally:
            for i in range(len(entries)):
                lib.llama_memory_seq_rm(memory, MAX_SEQUENCES + i, -1, -1)


class GgufExtractor:
    """A quantized model, opened for measuring. Raises ModelError for files that do not fit."""

    backend = "llama.cpp"
    # Without a unified cache a batch is split by sequence and its rows move.
    context_overrides: ClassVar[dict[str, Any]] = {
        "n_seq_max": 2 * MAX_SEQUENCES,
        "kv_unified": True,
    }

    def __init__(
        self,
        model: str,
        mmproj: str | None = None,
        *,
        n_gpu_layers: int = 0,
        n_threads: int | None = None,
        n_ctx: int = 4096,
        verbose: bool = False,
    ) -> None:
        # llama.cpp warns of a context longer than the model's, but many prompts share it.
        with suppress_stdout_stderr(disable=verbose):
            self.llama = HookedLlama(
                model,
                # llama-cpp-python caps n_batch at n_ctx, and a longer batch aborts the process.
                n_ctx=n_ctx and max(n_ctx, N_BATCH),
                n_batch=N_BATCH,
                n_gpu_layers=n_gpu_layers,
                n_threads=n_threads,
                n_threads_batch=n_threads,
                verbose=verbose,
                context_overrides=self.context_overrides,
            )
        self.n_layer, self.n_embd = self.llama.n_layer, self.llama.n_embd()
        self.n_cells = self.llama.n_ctx()
        self.fingerprint: ModelFingerprint = fingerprint(self.llama)
        self._handler: Any = None
        if mmproj is not None:
            require_gguf(mmproj)
            self._handler = llama_chat_format.MTMDChatHandler(mmproj, verbose=verbose)
            load_mmproj(self.llama, self._handler)
        self._formatter = self._chat_formatter()
        self._embeddings: OrderedDict[tuple[bytes, int], Any] = OrderedDict()
        self._states: dict[tuple[Any, ...], tuple[npt.NDArray[np.uint8], int]] = {}
        self._last: _Sequence | None = None  # of the session before, if others can begin with it
        self._batch = lib.llama_batch_init(N_BATCH, 0, MAX_SEQUENCES)
        self._n_embd_input = lib.llama_model_n_embd_inp(self.llama.model)
        self._embedded = lib.llama_batch_init(N_BATCH, self._n_embd_input, 1)

    @property
    def sees_images(self) -> bool:
        """Whether prompts may have pictures."""
        return self._handler is not None

    def close(self) -> None:
        """Free the model."""
        lib.llama_batch_free(self._batch)
        lib.llama_batch_free(self._embedded)
        self.forget()
        self.llama.close()

    def forget(self) -> None:
        """Let go of what is kept in case it comes again: encoded pictures (MAX_EMBEDDINGS), decoded
        prompts (MAX_STATES) and what the next session could begin with."""
        self._embeddings.clear()
        self._states.clear()
        self._last = None

    def _chat_formatter(self) -> llama_chat_format.ChatFormatter:
        template = self.llama.metadata.get("tokenizer.chat_template")
        if not template:
            raise ModelError(
                f"{self.llama.model_path}: this model has no chat template "
                "(tokenizer.chat_template), expected a chat model: refusal is measured on chat "
                "prompts. Use the instruct version of the model."
            )
        if self._handler is None and self.llama.chat_format in OWN_FORMATS:
            return OWN_FORMATS[self.llama.chat_format]
        text = [
            self.llama.detokenize([token], special=self._handler is None).decode(errors="ignore")
            for token in (self.llama.token_eos(), self.llama.token_bos())
        ]
        return llama_chat_format.Jinja2ChatFormatter(template, *text)

    # Prompts to tokens -------------------------------------------------------------------------

    def render(self, prompt: Prompt) -> str:
        """The chat template's text for one user message, media as mtmd's markers."""
        return self._formatted(prompt).prompt

    def _formatted(self, prompt: Prompt) -> llama_chat_format.ChatFormatterResponse:
        content: Any = prompt.text
        if prompt.images:
            marker = mtmd_cpp.mtmd_default_marker().decode()
            content = [{"type": "text", "text": marker} for _ in prompt.images]
            content.append({"type": "text", "text": prompt.text})
        messages: Any = [{"role": "user", "content": content}]
        return self._formatter(messages=messages)

    def _sequence(self, prompt: Prompt) -> _Sequence:
        formatted = self._formatted(prompt)
        text = formatted.prompt.encode()
        if self._handler is None:
            if prompt.images:
                raise ModelError("a prompt with pictures, but no mmproj. Give one with --mmproj.")
            add_bos = not formatted.added_special
            tokens = self.llama.tokenize(text, add_bos=add_bos, special=True)
            return _Sequence([], tuple(tokens))
        chunks = self._mtmd_chunks(text, prompt.images)
        if not chunks or not isinstance(chunks[-1], tuple):
            raise ModelError("the chat template puts nothing after a picture: no logits there")
        return _Sequence(chunks[:-1], chunks[-1])

    def _mtmd_chunks(self, text: bytes, images: Sequence[Image.Image]) -> list[Any]:
        """Text chunks as tuples of tokens, media chunks as pictures."""
        bitmaps = []
        shown: Counter[bytes] = Counter()
        for image in images:
            pixels = image.convert("RGB").tobytes()
            data = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
            bitmap = mtmd_cpp.mtmd_bitmap_init(image.width, image.height, data)
            name = hashlib.sha256(f"{image.size}".encode() + pixels).hexdigest().encode()
            mtmd_cpp.mtmd_bitmap_set_id(bitmap, name)
            bitmaps.append(bitmap)
            shown[name] += 1
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            input_text = mtmd_cpp.mtmd_input_text()
            input_text.text, input_text.text_len = text, len(text)
            input_text.add_special = input_text.parse_special = True
            array = (mtmd_cpp.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            code = mtmd_cpp.mtmd_tokenize(
                self._handler.mtmd_ctx, chunks, ctypes.byref(input_text), array, len(bitmaps)
            )
            if code != 0:
                raise ModelError(f"libmtmd could not tokenize a prompt with pictures (code {code})")
            parts = [
                self._chunk(mtmd_cpp.mtmd_input_chunks_get(chunks, i))
                for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks))
            ]
            return _identified(parts, shown)
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd_cpp.mtmd_bitmap_free(bitmap)

    @staticmethod
    def _chunk(chunk: Any) -> Any:
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
            return _Picture(mtmd_cpp.mtmd_input_chunk_copy(chunk), None)
        count = ctypes.c_size_t()
        tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return tuple(tokens[: count.value])

    # Decoding ----------------------------------------------------------------------------------

    def sessions(
        self, prompts: Sequence[Prompt], *, again: Collection[int] = ()
    ) -> Iterator[tuple[list[int], Session]]:
        """Sessions over ``prompts``, as many prompts in each as fit, those that begin alike side by
        side; each is valid until the next is asked for. Yields the prompts' indices and the
        session. ``again``: indices of those that another session will need again, so that what was
        decoded of them is kept (MAX_STATES)."""
        order = _side_by_side(prompts)
        while order:
            group = self._group([prompts[i] for i in order[:MAX_SEQUENCES]])
            indices = order[: len(group)]
            with self._prefilled(group, [i in again for i in indices]) as session:
                yield indices, session
            order = order[len(group) :]

    def _group(self, prompts: Sequence[Prompt]) -> list[_Sequence]:
        """As many of ``prompts`` as fit into a session, at least one."""
        group: list[_Sequence] = []
        cells, room = 0, min(self.n_cells, max(MIN_CELLS, int(MAX_CELLS * self.n_embd)))
        begun: set[tuple[Any, ...]] = set()
        for prompt in prompts:
            sequence = self._sequence(prompt)
            # One more cell for the copy's last token.
            need = self._cells(sequence) + 1
            if need > self.n_cells:
                raise ModelError(
                    f"a prompt needs {need} cells of context, found {self.n_cells}. "
                    "Raise --ctx-size."
                )
            if sequence.identity not in self._states:
                beginnings = [sequence.beginning(k + 1) for k in range(len(sequence.head))]
                need -= sum(
                    self._n_tokens(part)
                    for part, beginning in zip(sequence.head, beginnings, strict=True)
                    if beginning in begun
                )
                begun.update(beginnings)
            if group and cells + need > room:
                self._free(sequence)
                break
            sequence.number = len(group)
            group.append(sequence)
            cells += need
        return group

    def length(self, prompt: Prompt) -> int:
        """Cells of the context that ``prompt`` takes."""
        sequence = self._sequence(prompt)
        cells = self._cells(sequence)
        self._free(sequence)
        return cells

    def _cells(self, sequence: _Sequence) -> int:
        return len(sequence.tail) + sum(map(self._n_tokens, sequence.head))

    @staticmethod
    def _n_tokens(part: tuple[int, ...] | _Picture) -> int:
        if isinstance(part, tuple):
            return len(part)
        return int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(part.chunk))

    @staticmethod
    def _free(sequence: _Sequence) -> None:
        for part in sequence.head:
            if not isinstance(part, tuple):
                mtmd_cpp.mtmd_input_chunk_free(part.chunk)

    @contextmanager
    def _prefilled(self, group: list[_Sequence], again: list[bool]) -> Iterator[Session]:
        try:
            self._empty(group)
            fresh = [sequence for sequence in group if not self._restore(sequence)]
            self._prefill(fresh)
            for sequence in fresh:
                if again[sequence.number]:
                    self._keep(sequence)
            yield Session(self, group)
        finally:
            for sequence in group:
                self._free(sequence)

    def _shares_tokens(self, group: Sequence[_Sequence]) -> bool:
        """Whether any number of tokens that these begin with can be shared."""
        return self.llama.memory_can_rewind() and not any(s.head for s in group)

    def _empty(self, group: list[_Sequence]) -> None:
        """Empty the context, but for what ``group`` begins with like the session before ended."""
        memory = lib.llama_get_memory(self.llama.ctx)
        last, self._last = self._last, None
        if last is None or not self._shares_tokens(group):
            lib.llama_memory_clear(memory, False)
            for sequence in group:
                sequence.n_past = 0
            return
        spare = MAX_SEQUENCES
        lib.llama_memory_seq_cp(memory, last.number, spare, -1, -1)
        lib.llama_memory_seq_keep(memory, spare)
        for sequence in group:
            sequence.n_past = _n_alike(sequence.tail[:-1], last.tail[:-1])
            if sequence.n_past:
                lib.llama_memory_seq_cp(memory, spare, sequence.number, 0, sequence.n_past)
        lib.llama_memory_seq_rm(memory, spare, -1, -1)

    def _keep(self, sequence: _Sequence) -> None:
        """Copy what was decoded of ``sequence``, if there is room."""
        identity = sequence.identity
        size = lib.llama_state_seq_get_size(self.llama.ctx, sequence.number)
        kept = sum(state.nbytes for state, _ in self._states.values())
        if identity is None or kept + size > MAX_STATES:
            return
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if lib.llama_state_seq_get_data(self.llama.ctx, pointer, size, sequence.number) == size:
            self._states[identity] = state, sequence.n_past

    def _restore(self, sequence: _Sequence) -> bool:
        """Put back what was kept of ``sequence``; whether there was something."""
        identity = sequence.identity
        if identity is None or identity not in self._states:
            return False
        state, n_past = self._states[identity]
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        size = state.nbytes
        if lib.llama_state_seq_set_data(self.llama.ctx, pointer, size, sequence.number) != size:
            raise ModelError("llama.cpp could not restore what it had decoded of a prompt")
        sequence.n_past = n_past
        return True

    def _prefill(self, group: list[_Sequence]) -> None:
        """Decode what is not yet decoded of each sequence, all but the last token."""
        if self._shares_tokens(group):
            missing = {s.number: (s.tail[:-1], s.n_past) for s in group}
            self._decode_text(_distinct_prefixes(missing))
            for sequence in group:
                sequence.n_past = len(sequence.tail) - 1
            self._last = group[-1] if group else None
            return
        shared = self._share_prefix(group)
        for sequence in group:
            sequence.n_past = shared
        for depth in range(max((len(s.head) for s in group), default=0)):
            self._decode_part([s for s in group if len(s.head) > depth], depth, shared)
        entries: list[Entry] = []
        for sequence in group:
            skip = 0 if sequence.head else shared
            entries += self._entries(sequence, sequence.tail[skip:-1])
        self._decode_text(entries)

    def _decode_part(self, group: list[_Sequence], depth: int, shared: int) -> None:
        """Decode one part of the head of each sequence, the parts before it being decoded: for
        sequences that have been the same so far, once."""
        alike: dict[tuple[Any, ...], list[_Sequence]] = {}
        for sequence in group:
            alike.setdefault(sequence.beginning(depth + 1), []).append(sequence)
        entries: list[Entry] = []
        pictures: list[tuple[_Sequence, _Picture]] = []
        for first, *_ in alike.values():
            part = first.head[depth]
            if isinstance(part, tuple):
                entries += self._entries(first, part[shared:] if depth == 0 else part)
            else:
                pictures.append((first, part))
        self._decode_text(entries)
        self._decode_pictures(pictures)
        memory = lib.llama_get_memory(self.llama.ctx)
        for first, *others in alike.values():
            for other in others:
                lib.llama_memory_seq_cp(memory, first.number, other.number, -1, -1)
                other.n_past = first.n_past

    def _share_prefix(self, group: list[_Sequence]) -> int:
        """Decode what all prompts begin with into every sequence; return its length."""
        first = [s.head[0] if s.head else s.tail[:-1] for s in group]
        if len(group) < 2 or not all(isinstance(tokens, tuple) for tokens in first):
            return 0
        shared = 0
        while all(len(t) > shared and t[shared] == first[0][shared] for t in first):
            shared += 1
        if shared:
            leader = group[0].number
            self._decode_text([(t, p, (leader,), False) for p, t in enumerate(first[0][:shared])])
            memory = lib.llama_get_memory(self.llama.ctx)
            for sequence in group[1:]:
                lib.llama_memory_seq_cp(memory, leader, sequence.number, -1, -1)
        return shared

    @staticmethod
    def _entries(sequence: _Sequence, tokens: tuple[int, ...]) -> list[Entry]:
        entries: list[Entry] = [
            (t, sequence.n_past + p, (sequence.number,), False) for p, t in enumerate(tokens)
        ]
        sequence.n_past += len(tokens)
        return entries

    def _decode_text(self, entries: list[Entry]) -> None:
        for start in range(0, len(entries), N_BATCH):
            self.decode(entries[start : start + N_BATCH])

    def decode(self, entries: list[Entry]) -> None:
        """Decode at most N_BATCH tokens."""
        self._fill(entries)
        self._decode_batch(self._batch)

    def _decode_batch(self, batch: Any) -> None:
        code = lib.llama_decode(self.llama.ctx, batch)
        if code != 0:
            raise ModelError(f"llama_decode returned {code} for {batch.n_tokens} tokens")

    def _fill(self, entries: list[Entry]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for k, (token, position, sequences, wants_logits) in enumerate(entries):
            batch.token[k], batch.pos[k], batch.logits[k] = token, position, wants_logits
            batch.n_seq_id[k] = len(sequences)
            for j, sequence in enumerate(sequences):
                batch.seq_id[k][j] = sequence

    def _encode(self, picture: _Picture) -> Any:
        """The picture's embeddings, valid until the next one is encoded."""
        identity = picture.identity
        if identity is not None and identity in self._embeddings:
            self._embeddings.move_to_end(identity)
            return self._embeddings[identity]
        if mtmd_cpp.mtmd_encode_chunk(self._handler.mtmd_ctx, picture.chunk) != 0:
            raise ModelError("libmtmd could not encode a picture")
        output = mtmd_cpp.mtmd_get_output_embd(self._handler.mtmd_ctx)
        n_tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(picture.chunk)
        size = n_tokens * lib.llama_model_n_embd_inp(self.llama.model)
        if identity is None:
            return output
        kept = (ctypes.c_float * size)()
        ctypes.memmove(kept, output, ctypes.sizeof(kept))
        self._embeddings[identity] = kept
        while sum(map(ctypes.sizeof, self._embeddings.values())) > MAX_EMBEDDINGS:
            self._embeddings.popitem(last=False)
        return kept

    def _decode_pictures(self, pictures: Sequence[tuple[_Sequence, _Picture]]) -> None:
        """Decode a picture of each sequence, several in a batch where that gives the same."""
        batch, context = self._embedded, self._handler and self._handler.mtmd_ctx
        batch.n_tokens = 0
        for sequence, picture in pictures:
            n_tokens = self._n_tokens(picture)
            if (
                mtmd_cpp.mtmd_decode_use_mrope(context)
                or mtmd_cpp.mtmd_decode_use_non_causal(context, picture.chunk)
                or n_tokens > N_BATCH
            ):
                embeddings = self._encode(picture)
                sequence.n_past = self._decode_picture(sequence, picture, embeddings)
                continue
            if batch.n_tokens + n_tokens > N_BATCH:
                self._decode_batch(batch)
                batch.n_tokens = 0
            self._append(sequence, self._encode(picture), n_tokens)
        if batch.n_tokens:
            self._decode_batch(batch)

    def _append(self, sequence: _Sequence, embeddings: Any, n_tokens: int) -> None:
        """Put a picture's embeddings into the batch, at the positions that follow."""
        batch, size = self._embedded, 4 * self._n_embd_input
        start = ctypes.addressof(batch.embd.contents) + batch.n_tokens * size
        ctypes.memmove(start, embeddings, n_tokens * size)
        for k in range(batch.n_tokens, batch.n_tokens + n_tokens):
            batch.pos[k], batch.logits[k] = sequence.n_past, False
            batch.n_seq_id[k], batch.seq_id[k][0] = 1, sequence.number
            sequence.n_past += 1
        batch.n_tokens += n_tokens

    def _decode_picture(self, sequence: _Sequence, picture: _Picture, embeddings: Any) -> int:
        """Decode a picture alone, in libmtmd's way; return the position after it. Raises ModelError
        for one that would make llama.cpp abort the process."""
        context = self._handler.mtmd_ctx
        require_one_batch(context, picture.chunk, self.llama.ctx)
        after = lib.llama_pos(0)
        code = mtmd_cpp.mtmd_helper_decode_image_chunk(
            context,
            self.llama.ctx,
            picture.chunk,
            embeddings,
            sequence.n_past,
            sequence.number,
            N_BATCH,
            ctypes.byref(after),
            mtmd_cpp.mtmd_helper_post_decode_callback(),
            None,
        )
        if code != 0:
            raise ModelError(f"llama.cpp could not decode a picture (code {code})")
        return int(after.value)


def _side_by_side(prompts: Sequence[Prompt]) -> list[int]:
    """The indices of ``prompts``, those that begin alike, with pictures or with text, one after
    another."""
    ranks: dict[int, int] = {}
    shown = [[ranks.setdefault(id(image), len(ranks)) for image in p.images] for p in prompts]
    return sorted(range(len(prompts)), key=lambda i: (shown[i], prompts[i].text))


def _n_alike(a: Sequence[int], b: Sequence[int]) -> int:
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


def _identified(parts: list[Any], shown: Counter[bytes]) -> list[Any]:
    """``parts`` with the identity of their pictures. ``shown`` counts the pictures by hash; some
    models cut one into several chunks."""
    names = [
        b"" if isinstance(part, tuple) else mtmd_cpp.mtmd_input_chunk_get_id(part.chunk) or b""
        for part in parts
    ]
    chunks, seen = Counter(names), Counter[bytes]()
    for i, name in enumerate(names):
        if name in shown and chunks[name] % shown[name] == 0:
            slices = chunks[name] // shown[name]
            parts[i] = _Picture(parts[i].chunk, (name, seen[name] % slices))
            seen[name] += 1
    return parts
