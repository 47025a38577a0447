"""Pictures that cannot be evaluated are refused, whichever way they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama_cpp import mtmd_cpp
from mars_gguf.handlers import conversation_handler
from models import mmproj_of, picture, steered, user

from mars_gguf.errors import ModelError
from mars_gguf.runtime.llama import SteeredLlama

LIMITS: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0}
TEXT = [user("How many are there?")]


def with_mmproj(model: str, **options: Any) -> SteeredLlama:
    return steered(model, mmproj=mmproj_of(model), **options)


def with_conversation_handler(model: str, **options: Any) -> SteeredLlama:
    return steered(model, chat_handler=conversation_handler(mmproj_of(model)), **options)


each_way = pytest.mark.parametrize("load", [with_mmproj, with_conversation_handler])


@each_way
@pytest.mark.parametrize("sizes", [{"n_ubatch": 8}, {"n_batch": 8}], ids=str)
def test_a_picture_that_llama_cpp_would_abort_over_is_refused(
    gemma: str, load: Callable[..., SteeredLlama], sizes: dict[str, int]
) -> None:
    """What attends to itself must be in one micro-batch; the pictures here have 16 tokens."""
    llama = load(gemma, **sizes)
    with pytest.raises(ModelError, match="found n_ubatch 8 .*, expected 16"):
        llama.create_chat_completion([user("What is it?", picture(1))], **LIMITS)
    reply: Any = llama.create_chat_completion(TEXT, **LIMITS)
    assert reply["mars"]["modality"] == "text"
    llama.close()


@each_way
def test_a_picture_that_finds_no_cell_left_is_a_prompt_too_long(
    mrope: str, load: Callable[..., SteeredLlama]
) -> None:
    """With M-RoPE a picture of 100 cells takes 10 positions."""
    llama = load(mrope, n_ctx=256)
    pictures = [picture(n, 280) for n in range(3)]
    with pytest.raises(ValueError, match="Prompt exceeds n_ctx"):
        llama.create_chat_completion([user("What is it?", *pictures)], **LIMITS)
    reply: Any = llama.create_chat_completion([user("What is it?", *pictures[:2])], **LIMITS)
    assert reply["mars"]["modality"] == "video"
    llama.close()


def test_a_picture_that_cannot_be_encoded_is_not_taken_for_a_prompt_too_long(
    mrope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock: no picture is known that libmtmd cannot encode."""
    llama = with_mmproj(mrope)
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", lambda *_: 1)
    with pytest.raises(ValueError, match="Failed to evaluate chunk"):
        llama.create_chat_completion([user("What is it?", picture(1))], **LIMITS)
    llama.close()
