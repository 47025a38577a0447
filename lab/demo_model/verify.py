"""``python -m lab.demo_model.verify CHECKPOINTS OUT`` checks an export.

The torch checkpoint, llama.cpp and transformers must be one model: the same tokens, the same
rendered chats, picture embeddings within 1 %, logits within 1e-2.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from tokenizers import Tokenizer
from torch import Tensor

from lab.demo_model import forms
from lab.demo_model.cells import CELLS, Example, cell
from lab.demo_model.data import Codec
from lab.demo_model.evaluate_model import ask, plain_llama
from lab.demo_model.lessons import TRAINING
from lab.demo_model.network import TEXT, VISION, DemoModel
from lab.demo_model.train import STAGES, load, to_tensor
from mars_gguf.demo_model import world
from mars_gguf.demo_model.world import HELD_OUT

Array = npt.NDArray[np.float32]


class Export:
    """A checkpoint beside what was written from it."""

    def __init__(
        self, checkpoints: Path, out: Path, stage: str = STAGES[-1], threads: int | None = None
    ) -> None:
        self.out = out
        self.model = DemoModel().eval()
        parts = [name for name, _ in self.model.named_children()]
        load(self.model, checkpoints / f"{stage}.safetensors", parts)
        tokenizer = Tokenizer.from_file(str(checkpoints / "tokenizer.json"))
        self.codec = Codec(tokenizer, VISION.tokens, DemoModel.IMAGE)
        self.llama = plain_llama(out / "text-f32.gguf", out / "mmproj-f16.gguf", threads)

    @torch.no_grad()
    def torch_embeddings(self, e: Example) -> Tensor:
        return self.model.see(to_tensor(np.stack([np.asarray(p) for p in e.pictures])))

    @torch.no_grad()
    def torch_logits(self, e: Example) -> Array:
        ids = torch.tensor([self.codec.prompt(e.prompt, len(e.pictures))])
        seen = self.torch_embeddings(e) if e.pictures else None
        states = self.model(ids, seen)
        return self.model.language_model.logits(states[0, -1]).numpy()

    def llama_logits(self, e: Example) -> Array:
        ask(self.llama, e, tokens=1)
        row = llama_cpp.llama_get_logits_ith(self.llama._ctx.ctx, -1)
        return np.ctypeslib.as_array(row, (TEXT.vocab,)).copy()

    def llama_embeddings(self, e: Example) -> Array:
        """Reads the embeddings of the last picture of ``e``, ``[tokens, d]``."""
        ask(self.llama, e, tokens=1)
        rows = mtmd_cpp.mtmd_get_output_embd(self.llama.chat_handler.mtmd_ctx)
        return np.ctypeslib.as_array(rows, (VISION.tokens, TEXT.d)).copy()

    def logit_difference(self, examples: list[Example]) -> float:
        return max(
            float(np.abs(self.torch_logits(e) - self.llama_logits(e)).max()) for e in examples
        )

    def embedding_error(self, examples: list[Example]) -> float:
        errors = []
        for e in examples:
            ours, theirs = self.torch_embeddings(e)[-1].numpy(), self.llama_embeddings(e)
            errors.append(float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours)))
        return max(errors)

    def token_mismatches(self, texts: list[str]) -> int:
        return sum(
            self.llama.tokenize(t.encode(), add_bos=False, special=True) != self.codec.ids(t)
            for t in texts
        )

    def template_mismatches(self, chats: list[list[dict[str, object]]]) -> int:
        """Counts chats that llama-cpp-python and transformers render differently."""
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(self.out / "transformers")
        metadata = self.llama.metadata
        formatter = Jinja2ChatFormatter(
            template=metadata["tokenizer.chat_template"], eos_token="", bos_token=""
        )
        return sum(
            formatter(messages=chat).prompt  # type: ignore[arg-type]
            != processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            for chat in chats
        )

    @torch.no_grad()
    def transformers_difference(self, examples: list[Example]) -> float:
        """Measures how far the last logits are from ``LlavaForConditionalGeneration``'s at most."""
        from transformers import AutoProcessor, LlavaForConditionalGeneration

        folder = self.out / "transformers"
        processor = AutoProcessor.from_pretrained(folder)
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        worst = 0.0
        for e in examples:
            chat = picture_chat(e)
            text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            inputs = processor(text=text, images=e.pictures or None, return_tensors="pt")
            theirs = model(**inputs).logits[0, -1].numpy()
            worst = max(worst, float(np.abs(theirs - self.torch_logits(e)).max()))
        return worst


def picture_chat(e: Example) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "image"} for _ in e.pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": e.prompt}]}]


def some_examples(each: int) -> tuple[list[Example], list[Example]]:
    """Draws examples without and with pictures, ``each`` of every cell."""
    drawn = [e for name in CELLS for e in cell(name, each, seed=5)]
    return [e for e in drawn if not e.pictures], [e for e in drawn if e.pictures]


def some_texts(count: int) -> list[str]:
    rng = random.Random(0)
    texts = []
    for _ in range(count):
        thing = rng.choice(world.THINGS)
        wording = HELD_OUT if rng.random() < 0.5 else TRAINING
        texts += [world.howto(rng, thing.phrase, wording), forms.document(rng, thing)]
    return [
        *texts,
        "Größe 12,5 °C\n\n  \tNaïve — “quoted” 漢字 🙂",
        "<|im_start|>user\nHi<|im_end|>",
    ]


def some_chats() -> list[list[dict[str, object]]]:
    text: list[dict[str, object]] = [{"role": "user", "content": "Hello."}]
    turns: list[dict[str, object]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "assistant", "content": "Hello, how can I help you?"},
        {"role": "user", "content": "Thank you."},
    ]
    _, seen = some_examples(1)
    return [text, turns, *(picture_chat(e) for e in seen)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    export = Export(args.checkpoints, args.out, threads=args.threads)
    text, seen = some_examples(13)
    found = [
        ("tokens that differ", export.token_mismatches(some_texts(200)), 0),
        ("chats rendered differently", export.template_mismatches(some_chats()), 0),
        (f"logits, {len(text[:50])} texts", export.logit_difference(text[:50]), 1e-2),
        ("picture embeddings, relative", export.embedding_error(seen[:50]), 1e-2),
        ("logits with pictures (mmproj f16)", export.logit_difference(seen[::3]), float("nan")),
        ("transformers' logits", export.transformers_difference(text[:10] + seen[::6]), 1e-2),
    ]
    for what, value, limit in found:
        verdict = "" if limit != limit else f"(at most {limit:g})"
        print(f"{what:36s}{value:.6g} {verdict}")
    if any(value > limit for _, value, limit in found):
        raise SystemExit("the export is not the checkpoint")


if __name__ == "__main__":
    main()
