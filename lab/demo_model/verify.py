"""``python -m lab.demo_model.verify EXPORT`` checks an export.

What `train` made, as transformers loads it, and its GGUF files in llama.cpp must be one model: the
same tokens, picture embeddings within 1 %, and after requests of every form, in conversations and
alone, logits within 1e-2. Both render a chat by the template that they hold.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from llama_cpp import mtmd_cpp
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lab.demo_model import lessons
from lab.demo_model.cells import CELLS, IN_CONTEXT, Example, cell
from lab.demo_model.data import Codec, Sample
from lab.demo_model.evaluate_model import ask, plain_llama
from mars_gguf.demo_model import world

Array = npt.NDArray[np.float32]


class Export:
    """The files of an export, loaded by transformers and by llama.cpp."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        of_transformers = folder / "transformers"
        self.processor = AutoProcessor.from_pretrained(of_transformers)
        self.model = LlavaForConditionalGeneration.from_pretrained(
            of_transformers, dtype=torch.float32
        ).eval()
        self.llama = plain_llama(folder / "text-f32.gguf", folder / "mmproj-f16.gguf", threads)

    def inputs(self, e: Example) -> Any:
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in e.pictures]
        asked = {"role": "user", "content": [*parts, {"type": "text", "text": e.prompt}]}
        text = self.processor.apply_chat_template(
            [*e.before, asked], add_generation_prompt=True, tokenize=False
        )
        return self.processor(text=text, images=e.pictures or None, return_tensors="pt")

    @torch.no_grad()
    def logit_difference(self, examples: list[Example]) -> float:
        """Measures how far the logits after the prompt are apart at most."""
        worst = 0.0
        for e in examples:
            expected = self.model(**self.inputs(e)).logits[0, -1].numpy()
            ask(self.llama, e, tokens=1)
            row = llama_cpp.llama_get_logits_ith(self.llama._ctx.ctx, -1)
            found = np.ctypeslib.as_array(row, expected.shape)
            worst = max(worst, float(np.abs(found - expected).max()))
        return worst

    @torch.no_grad()
    def embedding_error(self, examples: list[Example]) -> float:
        """Measures how far the embeddings of last pictures are apart at most, relative to them."""
        worst = 0.0
        for e in examples:
            pixels = self.inputs(e)["pixel_values"][-1:]
            expected = self.model.get_image_features(pixels).pooler_output[0].numpy()
            ask(self.llama, e, tokens=1)
            rows = mtmd_cpp.mtmd_get_output_embd(self.llama.chat_handler.mtmd_ctx)
            found: Array = np.ctypeslib.as_array(rows, expected.shape)
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            worst = max(worst, float(error))
        return worst

    def token_mismatches(self, texts: list[str]) -> int:
        """Counts texts that are other tokens in llama.cpp."""
        tokenizer = self.processor.tokenizer
        return sum(
            self.llama.tokenize(text.encode(), add_bos=False, special=True)
            != tokenizer.encode(text, add_special_tokens=False)
            for text in texts
        )

    def prompt_mismatches(self, examples: list[Example]) -> int:
        """Counts prompts that training wrote otherwise than the chat template does."""
        codec = Codec(self.processor.tokenizer.backend_tokenizer)
        return sum(
            codec.sample(_as_sample(e))[0] != self.inputs(e)["input_ids"][0].tolist()
            for e in examples
        )


def _as_sample(e: Example) -> Sample:
    """The example as training would show it; what its pictures show does not matter."""
    said = [message["content"] for message in e.before if message["role"] != "system"]
    system = [message["content"] for message in e.before if message["role"] == "system"]
    turns = [Sample(*turn) for turn in zip(said[::2], said[1::2], strict=True)]
    pictures = (None,) * len(e.pictures)
    return Sample(e.prompt, "", pictures, system="".join(system), earlier=tuple(turns))


def some_examples(each: int) -> tuple[list[Example], list[Example]]:
    """Draws examples without and with pictures, ``each`` of every cell."""
    drawn = [e for name in (*CELLS, *IN_CONTEXT) for e in cell(name, each, seed=5)]
    return [e for e in drawn if not e.pictures], [e for e in drawn if e.pictures]


def some_texts(count: int) -> list[str]:
    """Draws texts of the world, and adds some that are not of it."""
    rng = random.Random(0)
    texts = ["Größe 12,5 °C\n\n  \tNaïve — “quoted” 漢字 🙂", "<|im_start|>user\nHi<|im_end|>"]
    for _ in range(count):
        thing = rng.choice(world.THINGS)
        asked = rng.choice((world.howto, lessons.howto))(rng, thing.phrase)
        texts += [asked, lessons.document(rng, thing)]
    return texts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="that export wrote")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    export = Export(args.folder, args.threads)
    text, seen = some_examples(5)
    found = [
        ("tokens that differ", export.token_mismatches(some_texts(200)), 0),
        ("prompts written differently", export.prompt_mismatches(text + seen), 0),
        (f"logits, {len(text)} texts", export.logit_difference(text), 1e-2),
        ("picture embeddings, relative", export.embedding_error(seen[:50]), 1e-2),
        ("logits with pictures (mmproj f16)", export.logit_difference(seen[::3]), float("inf")),
    ]
    for what, value, limit in found:
        print(f"{what:36s}{value:.6g} (at most {limit:g})")
    if any(value > limit for _, value, limit in found):
        raise SystemExit("the files for llama.cpp are not the model")


if __name__ == "__main__":
    main()
