"""The steered model that a command's options name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mars_gguf.console import printable
from mars_gguf.errors import MarsError
from mars_gguf.options import llama_options
from mars_gguf.progress import progress_bar
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors import Vector, read_vector
from mars_gguf.vectors.shelf import AUTO

Files = tuple[str, str | None, str]


def load_steered(
    args: argparse.Namespace, files: Files, *, keep_turns: bool = False
) -> SteeredLlama:
    """The model that the options of `add_model_arguments` name, whose ``files`` are those of
    `model_files`, ready to steer. What is unusual about it is said on standard error. Raises
    MarsError."""
    model, mmproj, path = files
    vector = read_vector(path)
    with progress_bar(f"Loading {Path(model).name}", 1.0) as bar:
        llama = SteeredLlama(
            model,
            vector=vector,
            mmproj=mmproj,
            keep_turns=keep_turns,
            progress=bar.reach if bar.shown and not args.verbose else None,
            chat_template_kwargs=template_variables(vector),
            **llama_options(args),
        )
    if args.vector == AUTO:
        say(f"steered by {printable(path)}")
    if (trained := llama.context.n_trained) < llama.n_ctx():
        say(
            f"the context ({llama.n_ctx()} tokens) is longer than the model was trained for: "
            f"better give --ctx-size {trained}"
        )
    say_if_without_template(llama, args.chat_handler, say)
    return llama


def template_variables(vector: Vector) -> dict[str, Any]:
    """The variables of the chat template that a vector was measured with, which prompts keep.
    Raises MarsError."""
    text = vector.model.chat_template_kwargs or "{}"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MarsError(f"the vector: found {text!r:.60}, expected variables of a chat template")
    return found


def say_if_without_template(
    llama: SteeredLlama, chat_handler: str | None, say: Callable[[str], object]
) -> None:
    """Says how prompts are written where neither the model nor the options do."""
    if not llama.metadata.get("tokenizer.chat_template") and chat_handler is None:
        say(
            "the model has no chat template: prompts are written as ChatML. "
            "--chat-handler chooses another way."
        )


def say(line: str) -> None:
    """Says a line on standard error."""
    print(line, file=sys.stderr)
