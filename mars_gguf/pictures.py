"""How pictures reach the context: by libmtmd, after a look at what it does not look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp

from mars_gguf.errors import ModelError
from mars_gguf.hooks import interrupts_held


def require_one_batch(context: Any, chunk: Any, llama_context: Any) -> None:
    """Raise ModelError for a picture that the model must decode in one micro-batch and cannot:
    llama.cpp would abort the process."""
    cells = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
    n_ubatch = lib.llama_n_ubatch(llama_context)
    if mtmd_cpp.mtmd_decode_use_non_causal(context, chunk) and cells > n_ubatch:
        raise ModelError(
            f"the picture has {cells} tokens, which this model decodes in one micro-batch: "
            f"found n_ubatch {n_ubatch} (at most n_batch), expected {cells} or more. Raise it "
            "(--ubatch-size, for the server --n_ubatch), or show smaller pictures."
        )


def evaluate_picture(context: Any, llama_context: Any, chunk: Any, *rest: Any) -> int:
    """What ``mtmd_helper_eval_chunk_single`` (tools/mtmd/mtmd-helper.cpp) does with a picture.

    Raises ModelError for one that would make llama.cpp abort the process, ValueError if the context
    is full although the picture's positions would fit: with M-RoPE they are fewer than its cells.
    """
    require_one_batch(context, chunk, llama_context)
    n_past, sequence, n_batch, _logits_last, new_n_past = rest
    with interrupts_held():
        code: int = mtmd_cpp.mtmd_encode_chunk(context, chunk)
        if code != 0:
            return code
        code = mtmd_cpp.mtmd_helper_decode_image_chunk(
            context, llama_context, chunk, mtmd_cpp.mtmd_get_output_embd(context),
            n_past, sequence, n_batch, new_n_past,
            mtmd_cpp.mtmd_helper_post_decode_callback(), None,
        )  # fmt: skip
    if code == 1 and mtmd_cpp.mtmd_decode_use_mrope(context):  # llama_decode's: no slot
        n_ctx = lib.llama_n_ctx(llama_context)
        raise ValueError(f"Prompt exceeds n_ctx: its pictures take more cells than {n_ctx}")
    return code


def own_pictures(handler: Any, evaluate: Callable[..., int] = evaluate_picture) -> None:
    """Make a handler of llama-cpp-python evaluate pictures with ``evaluate``, which takes and
    returns what ``mtmd_helper_eval_chunk_single`` does."""
    handler._mtmd_cpp = _Library(evaluate)


class _Library:
    """``llama_cpp.mtmd_cpp`` as one handler sees it."""

    def __init__(self, evaluate: Callable[..., int]) -> None:
        self.mtmd_helper_eval_chunk_single = evaluate

    def __getattr__(self, name: str) -> Any:
        return getattr(mtmd_cpp, name)
