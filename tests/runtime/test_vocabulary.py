"""Texts that llama.cpp should not be given are refused before they are tokenized."""

from __future__ import annotations

import random

import models
import pytest
from models import DEMO

from mars_gguf import demo_model
from mars_gguf.errors import PromptError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.vocabulary import MAX_RUN, Vocabulary


@pytest.mark.parametrize("name", [DEMO, "smollm2"])
def test_no_text_has_fewer_tokens_than_are_foreseen(
    name: str, request: pytest.FixtureRequest
) -> None:
    path = name if name == DEMO else request.getfixturevalue(name)
    llama = models.tapped(path, **models.OPTIONS)
    vocabulary, chance = Vocabulary(llama), random.Random(3)
    pieces = [
        "<|im_start|>",
        "<|im_end|>",
        "<|im",
        "<",
        "|>",
        " ",
        "\n",
        "a",
        " the",
        "é",
        "\U0001f600",
    ]
    for length in (1, 3, 30, 300):
        for special in (True, False):
            text = "".join(chance.choices(pieces, k=length)).encode()
            n_tokens = len(llama.tokenize(text, add_bos=False, special=special))
            vocabulary.require_fits(text, n_tokens, special)
            with pytest.raises(ValueError, match="Prompt exceeds n_ctx"):
                vocabulary.require_fits(text * 400, n_tokens // 2, special)
    assert vocabulary.count_special(b"<|im_end|>a<|im_end|>", True) == 2
    assert vocabulary.count_special(b"<|im_end|>a<|im_end|>", False) == 0
    llama.close()


def test_a_run_that_would_overflow_the_stack_of_llama_cpp_is_not_tokenized() -> None:
    """With the tokenizer of DeepSeek, of Mistral, ... llama.cpp recurses at every letter."""
    llama = SteeredLlama(
        DEMO,
        vector=demo_model.VECTOR,
        kv_overrides={"tokenizer.ggml.pre": "deepseek-llm"},
        **models.OPTIONS | {"n_ctx": 1 << 16},
    )
    for text in (
        "a" * 60_000,
        " " * 60_000,
        "7" * 60_000,
        "é" * 30_000,
        "e\u0301" * 20_000,
        "!" * 60_000,
    ):
        with pytest.raises(PromptError, match="without a break"):
            llama.tokenize(f"Hello. {text}".encode())
    broken = ("a" * (MAX_RUN - 1) + ". ") * 10
    assert len(llama.tokenize(broken.encode())) > 10 * MAX_RUN
    with pytest.raises(PromptError, match="20000 special tokens"):
        llama.tokenize(b"<|im_end|>" * 20_000, special=True)
    llama.close()
