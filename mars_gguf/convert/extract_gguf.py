"""Hidden states of a GGUF model: many prompts at once, all blocks, with and without steering.

Everything but the last token of each prompt is decoded first, without a callback, at the speed of
prefill (runtime/prefill.py). The last tokens are then decoded together, one row a prompt, and
that short decode is the one that is observed: as at run time, where a steered last token is decoded
alone. It can be repeated with another block steered, because each time it runs on copies of the
sequences; so recurrent models, which cannot rewind, work too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np

from mars_gguf.convert.choices import GgufOptions
from mars_gguf.convert.extractor import Opening, Say
from mars_gguf.convert.prompts import Preamble, Prompt, Push, Rows
from mars_gguf.convert.refusals import N_TOKENS
from mars_gguf.convert.thinker import Thinker, ThoughtAndAnswer
from mars_gguf.errors import ModelError, PromptError
from mars_gguf.runtime.assembly import renew_context
from mars_gguf.runtime.compat import suppress_stdout_stderr
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.prefill import (
    N_BATCH,
    CachedPrompt,
    Decoder,
    Prefill,
    n_prompts_and_copies,
)
from mars_gguf.runtime.rpc import use_servers
from mars_gguf.runtime.selftest import require_readable
from mars_gguf.runtime.tap import LayerOutput

N_CTX = 4096
PADDING = 256  # llama.cpp's, of a context

# Every token attends over all cells of its session, other prompts' too. For small models that would
# cost more than the weights, which cost as much as attention over 12 x n_embd cells.
MAX_CELLS = 0.75  # x n_embd
MIN_CELLS = 256  # what llama.cpp attends over at least


class GgufSession:
    """Some prompts, decoded up to their last tokens. ``n_cells``: of the context that they take at
    most, the last token of a copy of each among them."""

    def __init__(self, extractor: GgufExtractor, prompts: list[CachedPrompt], n_cells: int) -> None:
        self.extractor, self.prompts, self.n_cells = extractor, prompts, n_cells

    def observe(self) -> tuple[Rows, Rows]:
        """Hidden states after every block, [n, n_layer, n_embd], and logits of the first token,
        [n, n_vocab], of all prompts of the session."""
        n_layer = self.extractor.n_layer
        states = np.empty((len(self.prompts), n_layer, self.extractor.n_embd), np.float32)

        def visit(output: LayerOutput) -> None:
            states[:, output.layer] = output.read()

        with self._seeing(range(n_layer), visit):
            logits = self.extractor.decoder.last_tokens(self.prompts)
        return states, logits

    def replies(self, n_tokens: int) -> list[Opening]:
        """The first ``n_tokens`` tokens of the greedy replies to all prompts, of their answers
        where the model thinks first, as many prompts at a time as there is room for."""
        at_once = max(1, self._free // self.extractor.reply_cells(n_tokens))
        found = []
        for start in range(0, len(self.prompts), at_once):
            some = self.prompts[start : start + at_once]
            found += self._replies(some, n_tokens, nullcontext())
        return found

    def steered_replies(self, pushes: Sequence[Push], n_tokens: int) -> Iterator[list[Opening]]:
        """For each (layer, additions) these replies, with the additions at the last token of the
        prompt alone: several pushes at a time, or some prompts where there is no room for all."""
        n = len(self.prompts)
        fit = max(1, self._free // self.extractor.reply_cells(n_tokens))
        at_once = max(1, min(fit, self.extractor.decoder.n_copies) // n)
        for start in range(0, len(pushes), at_once):
            some = pushes[start : start + at_once]
            found: list[Opening] = []
            for first in range(0, n, fit):
                part = slice(first, first + fit)
                pushed = self._pushing([(layer, added[part]) for layer, added in some])
                found += self._replies(self.prompts[part] * len(some), n_tokens, pushed)
            yield from (found[i : i + n] for i in range(0, len(found), n))

    def thoughts(self) -> list[list[int]]:
        """Has the model think about all prompts, as many at a time as there is room for; returns
        the tokens of each thought, its end among them."""
        thinker = self.extractor.thinker
        assert thinker is not None
        at_once, found = max(1, self._free // thinker.n_cells), []
        for start in range(0, len(self.prompts), at_once):
            found += thinker.thoughts(self.prompts[start : start + at_once])
        return found

    @property
    def _free(self) -> int:
        """Cells of the context that are left."""
        return self.extractor.n_cells - self.n_cells

    def _replies(
        self, prompts: list[CachedPrompt], n_tokens: int, first: AbstractContextManager[object]
    ) -> list[Opening]:
        llama = self.extractor.llama
        found = self.extractor.answers(prompts, n_tokens, first)
        return [Opening(t[0], llama.detokenize(t).decode(errors="replace")) for t in found]

    def _pushing(self, pushes: Sequence[Push]) -> AbstractContextManager[object]:
        """While the last tokens of prompts are decoded once for each push: add it."""

        def visit(output: LayerOutput) -> None:
            rows = output.read().reshape(len(pushes), -1, output.n_embd)
            for copy, (layer, additions) in enumerate(pushes):
                if layer == output.layer:
                    rows[copy] += additions
            output.write(0, rows.reshape(-1, output.n_embd))

        return self._seeing(sorted({layer for layer, _ in pushes}), visit)

    @contextmanager
    def _seeing(
        self, layers: Sequence[int], visit: Callable[[LayerOutput], None]
    ) -> Iterator[None]:
        """Within the block ``visit`` each of ``layers``. Raises ModelError if one was not seen."""
        missing = set(layers)

        def note(output: LayerOutput) -> None:
            visit(output)
            missing.discard(output.layer)

        with self.extractor.llama.tap.visiting(layers, note):
            yield
        if missing:
            raise ModelError(
                f"l_out-{min(missing)} was not seen: this architecture has no such node, or the "
                "decode was cut short"
            )


class GgufExtractor:
    """A quantized model, to be measured. Raises ModelError for files that do not fit, and for
    a model that cannot be steered.

    options: fields of `choices.GgufOptions`.
    """

    backend = "llama.cpp"
    sees_states: ClassVar[bool] = True
    # Without a unified cache a batch is split by sequence and its rows move. There is a recurrent
    # state for each sequence: how many fit is seen once there is one.
    context_overrides: ClassVar[dict[str, Any]] = {"n_seq_max": 2, "kv_unified": True}

    def __init__(
        self, model: str, mmproj: str | None = None, *, verbose: bool = False, **options: Any
    ) -> None:
        chosen = GgufOptions(**options)
        self.grows, n_ctx = chosen.n_ctx is None, N_CTX if chosen.n_ctx is None else chosen.n_ctx
        if chosen.rpc_servers:
            use_servers(chosen.rpc_servers)  # while standard error can be seen
        # llama.cpp warns of a context longer than the model's, but many prompts share it.
        with suppress_stdout_stderr(disable=verbose):
            self.llama = SteeredLlama(
                model,
                vector=None,
                mmproj=mmproj,
                template=chosen.chat_handler,
                chat_template_kwargs=chosen.chat_template_kwargs,
                reasoning=chosen.reasoning,
                # llama-cpp-python caps n_batch at n_ctx, and a longer batch aborts the process.
                n_ctx=n_ctx and max(n_ctx, N_BATCH),
                n_batch=N_BATCH,
                n_gpu_layers=chosen.n_gpu_layers,
                rpc_servers=chosen.rpc_servers,
                n_threads=chosen.n_threads,
                n_threads_batch=chosen.n_threads,
                verbose=verbose,
                context_overrides=self.context_overrides,
            )
        self.n_layer, self.n_embd = self.llama.n_layer, self.llama.n_embd()
        try:
            if self.sees_states:
                require_readable(self.llama, [self.n_layer - 1])
        except ModelError:
            self.llama.close()
            raise
        n_prompts, n_copies = n_prompts_and_copies(self.llama)
        renew_context(self.llama, n_seq_max=n_prompts + n_copies)
        self.fingerprint = self.llama.fingerprint
        self.sees_images = self.llama.projector is not None
        self.reasoning = self.llama.template.reasoning  # which token counts, if the model thinks
        self.answers_later = self.reasoning == "thought"  # other tokens come before the answer
        self.decoder = Decoder(self.llama, n_prompts)
        self.prefill = Prefill(self.llama, self.decoder)
        self._beside: dict[Any, int] = {}  # cells of pictures beside the text, by their sizes
        thinks = self.reasoning in ("thought", "answer")
        self.thinker = Thinker(self.llama, self.decoder, chosen.n_thought) if thinks else None
        self._thoughts: dict[int, tuple[Prompt, tuple[int, ...]]] = {}

    @property
    def n_cells(self) -> int:
        """Tokens of context."""
        return self.llama.n_ctx()

    def reply_cells(self, n_tokens: int) -> int:
        """Cells of the context that a reply with so many tokens of an answer takes."""
        return n_tokens + (self.thinker.n_cells if self.thinker and self.answers_later else 0)

    @property
    def _reserve(self) -> int:
        """Cells of the context that are left for all that follows a prompt."""
        return N_TOKENS + (self.thinker.n_cells if self.thinker else 0)

    def close(self) -> None:
        """Free the model."""
        self.decoder.close()
        self.forget()
        self.llama.close()

    def forget(self) -> None:
        """Let go of encoded pictures, and of what the next session could begin with."""
        self.prefill.forget()
        if self.llama.projector is not None:
            self.llama.projector.forget()

    def takes(self, context: Preamble) -> bool:
        """Whether the chat template writes what stands in ``context`` before a prompt."""
        try:
            self.render(Prompt("Hello", context=context))
        except PromptError:
            return False
        return True

    def render(self, prompt: Prompt) -> str:
        """The text of ``prompt`` as the chat template writes it, pictures as libmtmd's markers."""
        return self.llama.template.render(prompt.messages).text

    def length(self, prompt: Prompt) -> int:
        """Cells of the context that ``prompt`` takes."""
        return self.cached(prompt).n_cells

    def cached(self, prompt: Prompt, number: int = 0) -> CachedPrompt:
        """``prompt`` as it will lie in the cache, as sequence ``number``."""
        *head, last = self.llama.chunks(prompt.messages)
        if self.thinker is None:
            return CachedPrompt(head, last.tokens, number)
        _, thought = self._thoughts.get(id(prompt), (prompt, ()))
        begun = self.llama.template.render(prompt.messages).begun
        return CachedPrompt(head, last.tokens + thought, number, begun=begun)

    def answers(
        self,
        prompts: Sequence[CachedPrompt],
        n_tokens: int,
        first: AbstractContextManager[object],
    ) -> list[list[int]]:
        """The first ``n_tokens`` tokens of the greedy answer to every prompt; what goes before it,
        a thought, is left out. The last tokens of the prompts are decoded within ``first``."""
        if self.thinker is None or not self.answers_later:
            return self.decoder.replies(prompts, n_tokens, first)
        leading = ThoughtAndAnswer(self.thinker, prompts, n_tokens)
        found = self.decoder.replies(prompts, n_tokens, first, leading)
        return [reply[leading.answers[i] :] for i, reply in enumerate(found)]

    def make_room(self, prompts: Sequence[Prompt], say: Say = lambda line: None) -> None:
        """Renews the context if one of ``prompts`` and the beginning of its reply do not fit into
        it, and says so. Raises ModelError instead where its length was given."""
        self._make_room(max(map(self._length_by_sizes, prompts), default=0) + self._reserve)
        if self.grows and self.n_cells > N_CTX:
            say(f"the prompts need a context of {self.n_cells} tokens, instead of {N_CTX}")

    def _make_room(self, needed: int) -> None:
        """Likewise, for ``needed`` cells."""
        if needed <= self.n_cells:
            return
        padded = -(-needed // PADDING) * PADDING
        if not self.grows:
            raise ModelError(
                f"a prompt and the beginning of its reply need {needed} tokens of context, found "
                f"{self.n_cells}. Give n_ctx (a recipe's model.ctx_size) {padded} or more, or "
                "leave it out."
            )
        self.prefill.forget()
        renew_context(self.llama, n_ctx=padded)

    def _length_by_sizes(self, prompt: Prompt) -> int:
        """`length`, near enough: pictures of the same sizes take as many cells, counted once."""
        text = self.render(prompt).encode()
        n_text = len(self.llama.tokenize(text, add_bos=True, special=True))
        if not prompt.images:
            return n_text
        sizes = prompt.medium, *(image.size for image in prompt.images)
        if sizes not in self._beside:
            self._beside[sizes] = self.length(prompt) - n_text
        return n_text + self._beside[sizes]

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], GgufSession]]:
        """Sessions over ``prompts``, as many prompts in each as fit, those that begin alike side by
        side; each is valid until the next is asked for. Yields the prompts' indices and the
        session."""
        order = _side_by_side(prompts)
        while order:
            some = [prompts[i] for i in order[: self.decoder.n_sequences]]
            if self.reasoning == "answer":
                self._think([p for p in some if id(p) not in self._thoughts])
            group, n_cells = self.group(some, self.reply_cells(N_TOKENS))
            indices, order = order[: len(group)], order[len(group) :]
            self.prefill.run(group)
            yield indices, GgufSession(self, group, n_cells)

    def _think(self, prompts: list[Prompt]) -> None:
        """Have the model think about ``prompts``."""
        while prompts:
            group, n_cells = self.group(prompts, self._reserve)
            self.prefill.run(group)
            found = zip(prompts, GgufSession(self, group, n_cells).thoughts(), strict=False)
            self._thoughts |= {id(prompt): (prompt, tuple(said)) for prompt, said in found}
            prompts = prompts[len(group) :]

    def group(self, prompts: Sequence[Prompt], reserve: int) -> tuple[list[CachedPrompt], int]:
        """As many of ``prompts``, at least one, as fit into a session with ``reserve`` cells for
        what follows; and how many cells they take, with what several begin with counted once."""
        group: list[CachedPrompt] = []
        cells, begun = 0, set[tuple[Any, ...]]()
        for prompt in prompts:
            cached = self.cached(prompt, len(group))
            if not group:
                self._make_room(cached.n_cells + reserve)
            room = min(self.n_cells - reserve, max(MIN_CELLS, int(MAX_CELLS * self.n_embd)))
            before = group[-1] if group and self.prefill.shares_tokens else None
            need = _cells_beyond(cached, begun, before) + 1  # for the copy's last token
            if group and cells + need > room:
                break
            group.append(cached)
            cells += need
        return group, cells


def _cells_beyond(
    prompt: CachedPrompt, begun: set[tuple[Any, ...]], before: CachedPrompt | None
) -> int:
    """Cells that ``prompt`` takes beyond those of prompts before it, whose beginnings are
    ``begun``, to which its own are added; ``before`` is the last of them if tokens can be shared
    with it."""
    beginnings = [prompt.beginning(k + 1) for k in range(len(prompt.runs))]
    pairs = zip(prompt.runs, beginnings, strict=True)
    need = prompt.n_cells - sum(run.n_tokens for run, beginning in pairs if beginning in begun)
    if before is not None:
        n_runs, alike = prompt.shared(before)
        need -= alike if beginnings[n_runs:] and beginnings[n_runs] not in begun else 0
    begun.update(beginnings)
    return need


def _side_by_side(prompts: Sequence[Prompt]) -> list[int]:
    """The indices of ``prompts``, those that begin alike one after another."""
    ranks: dict[int, int] = {}
    shown = [[ranks.setdefault(id(image), len(ranks)) for image in p.images] for p in prompts]
    before = [str(p.context.messages) for p in prompts]
    return sorted(range(len(prompts)), key=lambda i: (before[i], shown[i], prompts[i].text))
