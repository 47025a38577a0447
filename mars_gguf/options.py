"""The options that commands share, with their bounds, and the steered model that they name."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mars_gguf.console import printable
from mars_gguf.errors import MarsError
from mars_gguf.hub import download

if TYPE_CHECKING:
    from mars_gguf.llama import SteeredLlama


MOST_THREADS = 512  # llama.cpp's own bound; beyond it the process aborts


def positive(text: str, most: int = 1 << 24) -> int:
    """An option's value as a whole number from 1 to ``most``, for argparse."""
    value = int(text)
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"found {value}, expected 1 to {most}")
    return value


def seed(text: str) -> int:
    """An option's value as a seed of random generators, 0 to 2**32 - 1, for argparse."""
    value = int(text)
    if not 0 <= value < 1 << 32:
        raise argparse.ArgumentTypeError(f"found {value}, expected 0 to {(1 << 32) - 1}")
    return value


def layer_range(text: str | None) -> tuple[int, int] | None:
    """First and last block of ``--layers``. Raises MarsError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text, re.ASCII)
    if found is None:
        raise MarsError(f"--layers: found {text!r}, expected FIRST-LAST, as in 8-20, or one")
    first, last = found.groups(default=found[1])
    return int(first), int(last)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is steered by which vector."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="FILE", help="model in GGUF format")
    group.add_argument("--mmproj", metavar="FILE", help="multimodal projector of the model")
    group.add_argument(
        "-hfr", "--hf-repo", metavar="ORG/NAME", help="download the model from a Hugging Face hub"
    )
    group.add_argument(
        "-hff",
        "--hf-file",
        metavar="FILE",
        help="which file of the repository, or a pattern such as '*Q4_K_M.gguf'. Its mmproj is "
        "taken along; --mmproj chooses another one, from the repository or from here",
    )
    group.add_argument("--no-mmproj", action="store_true", help="load no mmproj: text only")
    group.add_argument("--vector", metavar="FILE", help="vector that mars_gguf.convert wrote")
    group.add_argument("--demo", action="store_true", help="use the small model of the package")
    group.add_argument(
        "--force",
        action="store_true",
        help="use a vector made for another quantization or chat template",
    )
    group.add_argument(
        "--way",
        choices=["auto", "cvec", "inline"],
        default="auto",
        help="how the first token is steered (default: auto, which is inline)",
    )
    group.add_argument(
        "-c",
        "--ctx-size",
        type=lambda text: 0 if text == "0" else positive(text),
        default=4096,
        metavar="N",
        help="tokens of context (default: 4096; 0: as many as the model was trained with)",
    )
    group.add_argument(
        "-ub",
        "--ubatch-size",
        type=positive,
        default=512,
        metavar="N",
        help="tokens of a prompt evaluated at a time (default: 512)",
    )
    group.add_argument(
        "-ngl",
        "--n-gpu-layers",
        type=lambda text: -1 if text == "all" else int(text),
        default=0,
        metavar="N",
        help="layers to put on the GPU (default: 0; all, or -1: all)",
    )
    group.add_argument(
        "-t",
        "--threads",
        type=lambda text: positive(text, MOST_THREADS),
        metavar="N",
        help="threads to compute with (default: half of the processors, for prompts all)",
    )
    group.add_argument("-v", "--verbose", action="store_true", help="show what llama.cpp says")


def model_files(args: argparse.Namespace) -> tuple[str, str | None, str]:
    """Paths of the model, of its mmproj if there is one, and of the vector that the options name.

    Downloads what comes from a hub. Raises MarsError.
    """
    from mars_gguf import demo_model

    if args.demo:
        if args.model or args.mmproj or args.vector or args.hf_repo:
            raise MarsError("--demo brings its own model: give it or --model, not both")
        args.ctx_size = min(args.ctx_size or demo_model.CONTEXT, demo_model.CONTEXT)
        mmproj = None if args.no_mmproj else str(demo_model.MMPROJ)
        return str(demo_model.TEXT_MODEL), mmproj, str(demo_model.VECTOR)
    if args.hf_file and not args.hf_repo:
        raise MarsError("--hf-file names a file of --hf-repo: give both")
    if args.hf_repo and (args.model or not args.hf_file):
        raise MarsError("--hf-repo needs --hf-file, and takes the place of --model")
    if not (args.model or args.hf_repo):
        raise MarsError("no model. Give one with --model, or --demo for the package's own.")
    if not args.vector:
        raise MarsError(
            "no vector. Make one with python -m mars_gguf.convert, then give it with --vector: "
            "this tool does not run models unsteered."
        )
    if not args.hf_repo:
        return args.model, None if args.no_mmproj else args.mmproj, args.vector
    model = download(args.hf_repo, args.hf_file)
    mmproj = None if args.no_mmproj else args.mmproj
    if mmproj is None and not args.no_mmproj:
        mmproj = download(args.hf_repo, "*mmproj*.gguf", needed=False)
    elif mmproj is not None and not Path(mmproj).exists():
        mmproj = download(args.hf_repo, mmproj)
    return str(model), mmproj, args.vector


@contextmanager
def _loading(name: str) -> Iterator[Any]:
    """While a model is loaded: a bar on standard error, if that is a terminal. Yields the function
    to tell the share to."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

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


def llama_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options, less the files, as arguments of SteeredLlama."""
    return dict(
        way=args.way,
        force=args.force,
        n_ctx=args.ctx_size,
        n_batch=max(512, args.ubatch_size),
        n_ubatch=args.ubatch_size,
        n_gpu_layers=args.n_gpu_layers,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=args.verbose,
    )


def load_steered(args: argparse.Namespace, chat_handler: str | None = None) -> SteeredLlama:
    """The steered model that the options name, made for conversations: see
    `mars_gguf.handlers.ConversationHandler`. Raises MarsError."""
    from mars_gguf import handlers
    from mars_gguf.llama import SteeredLlama

    model, mmproj, vector = model_files(args)
    handler = handlers.conversation_handler(mmproj, chat_handler) if mmproj else None
    with _loading(Path(model).name) as progress:
        llama = SteeredLlama(
            model,
            vector=vector,
            chat_handler=handler,
            progress=None if args.verbose else progress,
            **llama_options(args),
        )
        if handler is not None:
            handlers.prepare(llama, handler)
    if (trained := llama._model.n_ctx_train()) < llama.n_ctx():
        print(
            f"the context ({llama.n_ctx()} tokens) is longer than the model was trained for: "
            f"better give --ctx-size {trained}",
            file=sys.stderr,
        )
    return llama
