"""Reads hidden states of a checkpoint of transformers, in torch, without llama.cpp.

Forward hooks on the language model's blocks keep the last token's row of every block's output.
(The last entry of transformers' ``hidden_states`` is after the final norm: no block's output.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np

from mars_gguf.convert.checkpoint import Checkpoint, Inputs, torch, transformers
from mars_gguf.convert.choices import CheckpointOptions
from mars_gguf.convert.extractor import Opening, Say
from mars_gguf.convert.prompts import Preamble, Prompt, Push, Rows
from mars_gguf.errors import MarsError, ModelError

Visit = Callable[[int, Any], Any]


class Batch:
    """A batch of prompts."""

    def __init__(self, extractor: TransformersExtractor, inputs: Inputs) -> None:
        self.extractor, self.checkpoint, self.inputs = extractor, extractor.checkpoint, inputs

    def observe(self) -> tuple[Rows, Rows]:
        """Reads hidden states after every block, [n, n_layer, n_embd], and logits of the first
        token, [n, n_vocab], of all prompts of the batch."""
        n, n_layer = len(self.inputs["input_ids"]), self.extractor.n_layer
        n_embd = self.extractor.n_embd
        states = np.empty((n, n_layer, n_embd), np.float32)
        missing = set(range(n_layer))

        def keep(index: int, hidden: Any) -> None:
            if hidden.dim() != 3 or hidden.shape[::2] != (n, n_embd):
                raise ModelError(
                    f"block {index} puts out a tensor of shape {list(hidden.shape)}, expected "
                    f"[{n}, tokens, {n_embd}]: this architecture cannot be steered"
                )
            states[:, index] = hidden[:, -1].float().cpu().numpy()
            missing.discard(index)

        with self.extractor.visiting(keep):
            logits: Rows = self.checkpoint.run(self.inputs).logits[:, -1].float().cpu().numpy()
        if missing:
            raise ModelError(f"blocks {sorted(missing)} were not run: this model skips blocks")
        if not np.isfinite(states).all():
            raise ModelError(
                f"hidden states in {self.checkpoint.model.dtype} have NaN or infinite entries. "
                "Give a recipe's model.dtype, bfloat16 or float32."
            )
        return states, logits

    def replies(self, n_tokens: int) -> list[Opening]:
        """Generates the first ``n_tokens`` tokens of the greedy replies to all prompts."""
        return self.checkpoint.replies(self.inputs, n_tokens)

    def steered_replies(self, pushes: Sequence[Push], n_tokens: int) -> Iterator[list[Opening]]:
        """Generates these replies for each push, which is added at the last token of the prompt."""
        last = self.inputs["input_ids"].shape[1] - 1
        for layer, additions in pushes:
            with self.extractor.visiting(_adding(layer, additions, last)):
                replies = self.replies(n_tokens)
            yield replies


def _adding(layer: int, additions: Rows, position: int) -> Visit:
    """Makes the visit that adds to the output of ``layer`` at one position of every prompt."""

    def add(index: int, hidden: Any) -> Any:
        if index != layer or hidden.shape[1] <= position:
            return None
        if hidden.shape[1] > position + 1:
            raise ModelError(
                f"block {index} has {hidden.shape[1]} positions for {position + 1} tokens: this "
                "model takes pictures in by itself, and the last token is not where it was"
            )
        hidden = hidden.clone()
        hidden[:, position] += torch.from_numpy(additions).to(hidden)
        return hidden

    return add


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
            raise MarsError(f"batch_size: found {options.batch_size}, expected at least 1")
        self.batch_size = options.batch_size
        self.checkpoint = Checkpoint(model, options, images=images)
        self.fingerprint = self.checkpoint.fingerprint
        self.n_layer, self.n_embd = self.fingerprint.n_layer, self.fingerprint.n_embd

    @property
    def sees_images(self) -> bool:
        """Whether prompts may have pictures."""
        return self.checkpoint.processor is not None

    def takes(self, context: Preamble) -> bool:
        """Tells whether the chat template writes what stands in ``context`` before a prompt."""
        try:
            self.checkpoint.template.render(Prompt("Hello", context=context))
        except ModelError:
            return False
        return True

    def make_room(self, prompts: Sequence[Prompt], say: Say) -> None:
        """Does nothing: every batch has the memory that it needs."""

    def close(self) -> None:
        """Frees the model."""
        del self.checkpoint

    def sessions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[list[int], Batch]]:
        """Yields batches of ``prompts`` in order, each with the indices of its prompts:
        ``batch_size`` of them, fewer where prompts with and without pictures meet."""
        for _, alike in groupby(range(len(prompts)), lambda i: len(prompts[i].images)):
            while indices := list(islice(alike, self.batch_size)):
                yield indices, Batch(self, self.checkpoint.inputs([prompts[i] for i in indices]))

    @contextmanager
    def visiting(self, visit: Visit) -> Iterator[None]:
        """Makes every pass within this block call ``visit`` with each block's index and output
        [n, tokens, n_embd], and go on with what it returns, unless that is None."""

        def hook(index: int, _block: Any, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            changed = visit(index, hidden)
            if changed is None or not isinstance(output, tuple):
                return changed
            return (changed, *output[1:])

        with ExitStack() as hooks:
            for index, block in enumerate(self.checkpoint.blocks):
                hooks.callback(block.register_forward_hook(partial(hook, index)).remove)
            yield
