"""The steered model that a command's options name."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mars_gguf.console import printable
from mars_gguf.options import llama_options
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.vectors.shelf import AUTO

Files = tuple[str, str | None, str]


def load_steered(
    args: argparse.Namespace, files: Files, *, keep_turns: bool = False
) -> SteeredLlama:
    """The model that the options of `add_model_arguments` name, whose ``files`` are those of
    `model_files`, ready to steer. What is unusual about it is said on standard error. Raises
    MarsError."""
    model, mmproj, vector = files
    with _bar(Path(model).name) as progress:
        llama = SteeredLlama(
            model,
            vector=vector,
            mmproj=mmproj,
            keep_turns=keep_turns,
            progress=None if args.verbose else progress,
            **llama_options(args),
        )
    if args.vector == AUTO:
        say(f"steered by {printable(vector)}")
    if (trained := llama.context.n_trained) < llama.n_ctx():
        say(
            f"the context ({llama.n_ctx()} tokens) is longer than the model was trained for: "
            f"better give --ctx-size {trained}"
        )
    say_if_without_template(llama, args.chat_handler, say)
    return llama


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


@contextmanager
def _bar(name: str) -> Iterator[Callable[[float], object] | None]:
    """A bar on standard error, if that is a terminal. Yields the function to tell the share to."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    columns = TextColumn("Loading {task.description}", markup=False), BarColumn()
    # A file of its own: llama-cpp-python sends standard error to nowhere while it loads.
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as terminal:
        bar = Progress(
            *columns, TaskProgressColumn(), console=Console(file=terminal), transient=True
        )
        with bar:
            task = bar.add_task(printable(name), total=1.0)
            yield lambda share: bar.update(task, completed=share)
