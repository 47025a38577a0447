"""The options that commands share, with their bounds, and the files that they name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mars_gguf.errors import MarsError
from mars_gguf.formats import HANDLERS
from mars_gguf.hub import download
from mars_gguf.reasoning import REASONINGS
from mars_gguf.vectors.shelf import AUTO

MOST_THREADS = 512  # llama.cpp's own bound; beyond it the process aborts

Group = argparse._ArgumentGroup | argparse.ArgumentParser

# Values ------------------------------------------------------------------------------------------


def _whole(text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"found {value}, expected {least} to {most}")
    return value


# Each reads an option's value as a whole number, for argparse.
positive = partial(_whole, least=1, most=1 << 24)
seed = partial(_whole, least=0, most=(1 << 32) - 1)
threads = partial(_whole, least=1, most=MOST_THREADS)
context_size = partial(_whole, least=0, most=1 << 24)  # 0: as many as it was trained with


def gpu_layers(text: str) -> int:
    """Reads an option's value as a number of layers, -1 for "all"."""
    return -1 if text == "all" else _whole(text, -1, 1 << 24)


def servers(text: str) -> str:
    """Reads an option's value as names of servers: with none, the model would stay on this
    machine."""
    if not text.strip():
        raise argparse.ArgumentTypeError("found no server, expected HOST:PORT,...")
    return text


def json_object(text: str) -> dict[str, Any]:
    """Reads an option's value as the JSON object that it spells."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"found {text!r:.60}, expected JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"found {text!r:.60}, expected a JSON object, as in '{{\"enable_thinking\": false}}'"
        )
    return value


# Options -----------------------------------------------------------------------------------------


def option(
    group: Group, spelled: str, words: str, kind: Callable[[str], Any] = str, default: Any = None
) -> None:
    """Adds an option with a value, spelled as in "-m --model FILE"; ``kind`` reads the value, and
    ``words`` are its help."""
    *flags, metavar = spelled.split()
    group.add_argument(*flags, metavar=metavar, help=words, type=kind, default=default)


def switch(group: Group, spelled: str, words: str) -> None:
    """Adds an option without a value."""
    group.add_argument(*spelled.split(), action="store_true", help=words)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model is steered by which vector, and how it is run."""
    group = parser.add_argument_group("model and vector")
    add_file_arguments(group)
    add_vector_arguments(group)
    add_template_arguments(parser.add_argument_group("how prompts are written"))
    group = parser.add_argument_group("where and how it runs")
    add_context_argument(group)
    words = "tokens of a prompt evaluated at a time (default: %(default)s)"
    option(group, "-ub --ubatch-size N", words, positive, 512)
    add_device_arguments(group)
    add_threads_argument(group)
    add_verbose_argument(group)


def add_file_arguments(group: Group, model: str = "model in GGUF format") -> None:
    """Adds the options that name the files of a GGUF model; ``model``: help for --model."""
    option(group, "-m --model FILE", model)
    option(group, "--mmproj FILE", "multimodal projector of the model; without one: text only")
    option(group, "-hfr --hf-repo ORG/NAME", "download the model from a Hugging Face hub")
    option(
        group,
        "-hff --hf-file FILE",
        "which file of the repository, or a pattern such as '*Q4_K_M.gguf'. Its mmproj is "
        "taken along; --mmproj chooses another one, from the repository or from here",
    )


def add_vector_arguments(group: Group) -> None:
    """Adds the options that say which vector steers, and how."""
    words = "vector that mars_gguf.convert wrote; auto: the one that belongs to the model's "
    words += "weights, of those in $MARS_VECTORS, else the user's cache, and in $MARS_VECTORS_FROM"
    option(group, "--vector FILE", words)
    switch(group, "--demo", "use the small model of the package")
    words = "use a vector made for another quantization, other weights or chat template"
    switch(group, "--force", words)
    words = "how the first token is steered (default: auto, which is inline)"
    group.add_argument("--way", choices=["auto", "cvec", "inline"], default="auto", help=words)


def add_vectors_from_argument(group: Group) -> None:
    words = "a repository of a Hugging Face hub with vectors (repeatable; default: those that "
    words += "$MARS_VECTORS_FROM names, with commas between them)"
    group.add_argument("--vectors-from", metavar="ORG/NAME", action="append", help=words)


def add_template_arguments(group: Group) -> None:
    """Adds the options that say how messages become the text of a prompt."""
    words = "how prompts are written (default: mtmd, the model's own chat template): "
    words += ", ".join(HANDLERS)
    group.add_argument("--chat-handler", choices=HANDLERS, metavar="NAME", help=words)
    group.add_argument(
        "-rea",
        "--reasoning",
        choices=REASONINGS,
        help="for models that think. off: without thoughts (as llama.cpp's off); thought, answer: "
        "with them (llama.cpp's on), and the token that is judged and steered is the first of the "
        "thought, or the first of the answer after it (default: as the vector was measured; to "
        "measure one, answer if the chat template lets the model think unasked, else off)",
    )


def add_template_variables_argument(group: Group) -> None:
    words = "variables for the chat template, as in '{\"enable_thinking\": false}'"
    option(group, "--chat-template-kwargs JSON", words, json_object)


def add_context_argument(group: Group, default: int | None = 4096, usual: str = "4096") -> None:
    words = f"tokens of context (default: {usual}; 0: as many as the model was trained with)"
    option(group, "-c --ctx-size N", words, context_size, default)


def add_device_arguments(group: Group) -> None:
    """Adds the options that say where the layers of a model go."""
    words = "layers to put on the GPU (default: 0, with --rpc all; all, or -1: all)"
    option(group, "-ngl --n-gpu-layers N", words, gpu_layers, 0)
    option(
        group,
        "--rpc HOST:PORT,...",
        "put them on other machines too, on which python -m mars_gguf.rpc_server runs, or "
        "llama.cpp's rpc-server of the same version",
        servers,
    )


def add_threads_argument(group: Group) -> None:
    words = "threads to compute with (default: half of the processors, for prompts all)"
    option(group, "-t --threads N", words, threads)


def add_verbose_argument(group: Group) -> None:
    switch(group, "-v --verbose", "show what the libraries say")


# What they name ----------------------------------------------------------------------------------


def model_files(args: argparse.Namespace) -> tuple[str, str | None, str]:
    """Finds the model, its mmproj if there is one, and the vector that the options name.

    Downloads what comes from a hub. Returns their paths. Raises MarsError.
    """
    from mars_gguf import demo_model

    if args.demo:
        if args.model or args.mmproj or args.vector or args.hf_repo:
            raise MarsError("--demo brings its own model: give it or --model, not both")
        return str(demo_model.TEXT_MODEL), str(demo_model.MMPROJ), str(demo_model.VECTOR)
    require_one_source(args)
    if not (args.model or args.hf_repo):
        raise MarsError("no model. Give one with --model, or --demo for the package's own.")
    if not args.vector:
        raise MarsError(
            "no vector. Make one with python -m mars_gguf.convert, then give it with --vector "
            "(auto finds one that was published): this tool does not run models unsteered."
        )
    model, mmproj = gguf_files(args)
    return model, mmproj, _vector(args, model, mmproj) if args.vector == AUTO else args.vector


def _vector(args: argparse.Namespace, model: str, mmproj: str | None) -> str:
    """Finds the vector that belongs to the model. Raises MarsError."""
    from mars_gguf.runtime.finding import find_vector

    if args.force:
        raise MarsError(
            "--vector auto takes what fits by itself: give the file, or leave --force out"
        )
    return find_vector(model, mmproj, reasoning=args.reasoning)


def require_one_source(args: argparse.Namespace) -> None:
    """Raises MarsError unless the options name files here or on a hub, not both nor half of one."""
    if args.hf_file and not args.hf_repo:
        raise MarsError("--hf-file names a file of --hf-repo: give both")
    if args.hf_repo and (args.model or not args.hf_file):
        raise MarsError("--hf-repo needs --hf-file, and takes the place of --model")


def gguf_files(args: argparse.Namespace) -> tuple[str, str | None]:
    """Finds the model and its mmproj, if there is one. Downloads what comes from a hub. Returns
    their paths. Raises MarsError."""
    mmproj = args.mmproj
    if not args.hf_repo:
        return args.model, mmproj
    model = download(args.hf_repo, args.hf_file)
    if mmproj is None:
        mmproj = download(args.hf_repo, "*mmproj*.gguf", needed=False)
    elif mmproj is not None and not Path(mmproj).exists():
        mmproj = download(args.hf_repo, mmproj)
    return str(model), mmproj


def llama_options(args: argparse.Namespace) -> dict[str, Any]:
    """Makes arguments of SteeredLlama of the options, less the files."""
    from mars_gguf.demo_model import CONTEXT

    n_ctx = min(args.ctx_size or CONTEXT, CONTEXT) if args.demo else args.ctx_size
    return dict(
        template=args.chat_handler,
        reasoning=args.reasoning,
        way=args.way,
        force=args.force,
        n_ctx=n_ctx,
        n_batch=max(512, args.ubatch_size),
        n_ubatch=args.ubatch_size,
        n_gpu_layers=args.n_gpu_layers,
        rpc_servers=args.rpc,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=args.verbose,
    )
