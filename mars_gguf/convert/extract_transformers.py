"""Reads hidden states of a checkpoint of transformers, in torch, without llama.cpp.

Forward hooks on the language model's blocks keep the last token's row of every block's output.
(The last entry of transformers' ``hidden_states`` is after the final norm: no block's output.)
Of a batch, everything but the last tokens goes into a key-value cache once; the last tokens run on
copies of it, as often as another block is to be steered. Where a model's cached pass does not
repeat its plain pass, which is tried on the first batch, whole prompts run each time instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import numpy as np

from mars_gguf.convert.checkpoint import Checkpoint, Inputs, torch, transformers
from mars_gguf.convert.choices import CheckpointOptions
from mars_gguf.convert.extractor import Reply
from mars_gguf.convert.prompts import Context, Prompt, Push, Rows
from mars_gguf.errors import MarsError, ModelError

Visit = Callable[[int, Any], Any]


class Batch:
    """A batch of prompts. ``cached``: the last tokens run on a cache of all others."""

    def __init__(self, extractor: TransformersExtractor, inputs: Inputs) -> None:
        self.extractor, self.checkpoint = extractor, extractor.checkpoint
        self.inputs, self.cached = inputs, False

    def observe(self) -> tuple[Rows, Rows]:
        """Reads hidden states after every block, [n, n_layer, n_embd], and logits of the first
        token, [n, n_vocab], of all prompts of the batch."""
        return self._observe(self.cached)

    def replies(self, n_tokens: int) -> list[Reply]:
        """Generates the first ``n_tokens`` tokens of the greedy replies to all prompts."""
        return self._replies(None, n_tokens)

    def steered_replies(self, pushes: Sequence[Push], n_tokens: int) -> Iterator[list[Reply]]:
        """Generates these replies for each (layer, additions), which are added at the last token of
        the prompt alone."""
        return (self._replies(push, n_tokens) for push in pushes)

    def _replies(self, push: Push | None, n_tokens: int) -> list[Reply]:
        """Generates on a cache, token by token; without one, from all tokens again for each."""
        tokens: list[Any] = []
        past = copy.deepcopy(self._prefilled) if self.cached else None
        for step in range(n_tokens):
            visit = None
            if push is not None and not (self.cached and step):
                visit = _adding(*push, -1 if self.cached else -1 - step)
            inputs = self._last(tokens) if self.cached else self._longer(tokens)
            options = {"past_key_values": past} if self.cached else {}
            with self.extractor.visiting(visit):
                output = self.checkpoint.run(inputs, use_cache=self.cached, **options)
            tokens.append(output.logits[:, -1].argmax(-1))
            past = output.past_key_values if self.cached else None
        return [self.checkpoint.reply(row) for row in torch.stack(tokens, 1).tolist()]

    def cache_works(self) -> bool:
        """Tries whether the last token on a cache of the others gives what the whole prompt
        gives."""
        whole, _ = self._observe(False)
        try:
            parts, _ = self._observe(True)
        except Exception:  # of any kind, from any architecture's code: then not this way
            return False
        tolerance = max(1e-3, 8 * torch.finfo(self.checkpoint.model.dtype).eps)
        difference = np.linalg.norm(whole - parts, axis=-1)
        return bool((difference <= tolerance * np.linalg.norm(whole, axis=-1)).all())

    def _observe(self, cached: bool) -> tuple[Rows, Rows]:
        extractor = self.extractor
        n = len(self.inputs["input_ids"])
        states = np.empty((n, extractor.n_layer, extractor.n_embd), np.float32)
        missing = set(range(extractor.n_layer))

        def keep(index: int, hidden: Any) -> None:
            if hidden.dim() != 3 or hidden.shape[::2] != (n, extractor.n_embd):
                raise ModelError(
                    f"block {index} puts out a tensor of shape {list(hidden.shape)}, expected "
                    f"[{n}, tokens, {extractor.n_embd}]: this architecture cannot be steered"
                )
            states[:, index] = hidden[:, -1].float().cpu().numpy()
            missing.discard(index)

        with extractor.visiting(keep):
            logits = self._forward(cached)
        if missing:
            raise ModelError(f"blocks {sorted(missing)} were not run: this model skips blocks")
        if not np.isfinite(states).all():
            raise ModelError(
                f"hidden states in {self.checkpoint.model.dtype} have NaN or infinite entries. "
                "Use --dtype bfloat16 or float32."
            )
        return states, logits

    def _forward(self, cached: bool) -> Rows:
        """Computes the logits of the first token, [n, n_vocab]."""
        inputs, options = self.inputs, dict[str, Any]()
        if cached:
            inputs = self._last([])
            options["past_key_values"] = copy.deepcopy(self._prefilled)
        output = self.checkpoint.run(inputs, use_cache=cached, **options)
        logits: Rows = output.logits[:, -1].float().cpu().numpy()
        return logits

    def _last(self, tokens: Sequence[Any]) -> Inputs:
        """Makes inputs of the last token of the prompt, or of ``tokens`` [n] that follow it."""
        ids = tokens[-1][:, None] if tokens else self.inputs["input_ids"][:, -1:]
        mask = _extended(self.inputs["attention_mask"], len(tokens), 1)
        last: Inputs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in self.inputs:
            last["position_ids"] = self.inputs["position_ids"][:, -1:] + len(tokens)
        for deltas in self._rope_deltas():
            positions = mask.sum(-1, keepdim=True) - 1 + deltas
            last["position_ids"] = positions.expand(3, -1, -1)
        return last

    def _longer(self, tokens: Sequence[Any]) -> Inputs:
        """Makes inputs of the prompt and the ``tokens`` [n] that follow it."""
        ids = self.inputs["input_ids"]
        inputs = {
            name: _extended(x, len(tokens), int(name == "attention_mask"))
            if torch.is_tensor(x) and x.shape == ids.shape
            else x
            for name, x in self.inputs.items()
        }
        inputs["input_ids"] = torch.cat([ids, *(t[:, None] for t in tokens)], 1)
        if "position_ids" in inputs:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return inputs

    @cached_property
    def _prefilled(self) -> Any:
        """The key-value cache of all tokens but the last."""
        for module in self.checkpoint.model.modules():
            if hasattr(module, "rope_deltas"):
                module.rope_deltas = None  # of the batch before
        ids = self.inputs["input_ids"]
        head = {
            name: x[:, :-1] if torch.is_tensor(x) and x.shape == ids.shape else x
            for name, x in self.inputs.items()
        }
        with self.extractor.visiting(None):
            return self.checkpoint.run(head, use_cache=True).past_key_values

    def _rope_deltas(self) -> list[Any]:
        """Reads what to add to the positions after pictures, which take fewer positions than tokens
        (M-RoPE), as the model noted it in the pass over them."""
        deltas = [getattr(m, "rope_deltas", None) for m in self.checkpoint.model.modules()]
        return [d for d in deltas if d is not None]


def _adding(layer: int, additions: Rows, position: int = -1) -> Visit:
    """Makes the visit that adds to the output of block ``layer`` at one position of every
    prompt."""

    def add(index: int, hidden: Any) -> Any:
        if index != layer:
            return None
        hidden = hidden.clone()
        hidden[:, position] += torch.from_numpy(additions).to(hidden)
        return hidden

    return add


def _extended(x: Any, n: int, value: int) -> Any:
    """Extends a tensor [prompts, tokens] by ``n`` columns of ``value``."""
    return torch.cat([x, x.new_full((len(x), n), value)], 1)


class TransformersExtractor:
    """A model of transformers, to be measured.

    model, options, images: as Checkpoint takes them. verbose: whether transformers talks.

    A model that thinks is measured without thoughts (reasoning "off"). Raises ModelError for a
    model that does not load, or that cannot be measured.
    """

    backend = f"transformers {transformers.__version__}"
    answers_later = False

    def __init__(
        self,
        model: str,
        options: CheckpointOptions | None = None,
        *,
        images: bool = True,
        verbose: bool = False,
    ) -> None:
        if not verbose:
            transformers.utils.logging.disable_progress_bar()
            transformers.utils.logging.set_verbosity_error()
        options = options or CheckpointOptions()
        if options.batch_size < 1:
            raise MarsError(f"--batch-size: found {options.batch_size}, expected at least 1")
        self.batch_size = options.batch_size
        self.checkpoint = Checkpoint(model, options, images=images)
        self.fingerprint = self.checkpoint.fingerprint
        self.n_layer, self.n_embd = self.fingerprint.n_layer, self.fingerprint.n_embd
        self._visit: Visit | None = None
        for index, block in enumerate(self.checkpoint.blocks):
            block.register_forward_hook(self._hook(index))
        self._cache_works: dict[int, bool] = {}

    @property
    def sees_images(self) -> bool:
        """Whether prompts may have pictures."""
        return self.checkpoint.processor is not None

    def takes(self, context: Context) -> bool:
        """Tells whether the chat template writes what stands in ``context`` before a prompt."""
        try:
            self.checkpoint.template.render(Prompt("Hello", context=context))
        except ModelError:
            return False
        return True

    def close(self) -> None:
        """Frees the model."""
        del self.checkpoint

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Batch]]:
        """Yields batches of ``prompts`` in order, each with the indices of its prompts:
        ``batch_size`` of them, fewer where prompts with and without pictures meet."""
        for count, alike in groupby(range(len(prompts)), lambda i: len(prompts[i].images)):
            while indices := list(islice(alike, self.batch_size)):
                batch = Batch(self, self.checkpoint.inputs([prompts[i] for i in indices]))
                if count not in self._cache_works:
                    self._cache_works[count] = batch.cache_works()
                batch.cached = self._cache_works[count]
                yield indices, batch

    @contextmanager
    def visiting(self, visit: Visit | None) -> Iterator[None]:
        """Makes every pass within this block call ``visit`` (None: nothing) with each block's index
        and output [n, tokens, n_embd], and go on with what it returns, unless that is None."""
        outer, self._visit = self._visit, visit
        try:
            yield
        finally:
            self._visit = outer

    def _hook(self, index: int) -> Any:
        def hook(_block: Any, _inputs: Any, output: Any) -> Any:
            if self._visit is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            changed = self._visit(index, hidden)
            if changed is None or not isinstance(output, tuple):
                return changed
            return (changed, *output[1:])

        return hook
