"""The options that commands share, with their bounds, and the files that they name."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from mars_gguf.errors import MarsError
from mars_gguf.formats import HANDLERS
from mars_gguf.hub import download
from mars_gguf.reasoning import REASONINGS

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
MOST_THREADS = 512  # llama.cpp's own bound; beyond it the process aborts

Group = argparse._ArgumentGroup | argparse.ArgumentParser

# Values ------------------------------------------------------------------------------------------


def positive(text: str, most: int = 1 << 24) -> int:
    """Reads an option's value as a whole number from 1 to ``most``, for argparse."""
    return _whole(text, 1, most)


def threads(text: str) -> int:
    """Reads an option's value as a number of threads."""
    return _whole(text, 1, MOST_THREADS)


def context_size(text: str) -> int:
    """Reads an option's value as tokens of context, 0 for as many as the model was trained with."""
    return _whole(text, 0, 1 << 24)


def servers(text: str) -> str:
    """Reads an option's value as names of servers: with none, the model would stay on this
    machine."""
    if not text.strip():
        raise argparse.ArgumentTypeError("found no server, expected HOST:PORT,...")
    return text


def gpu_layers(text: str) -> int:
    """Reads an option's value as a number of layers, -1 for "all"."""
    return -1 if text == "all" else _whole(text, -1, 1 << 24)


def seed(text: str) -> int:
    """Reads an option's value as a seed of random generators, 0 to 2**32 - 1, for argparse."""
    return _whole(text, 0, (1 << 32) - 1)


def _whole(text: str, least: int, most: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"found {value}, expected {least} to {most}")
    return value


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


def layer_range(text: str | None) -> tuple[int, int] | None:
    """Reads the first and last block of ``--layers``. Raises MarsError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text, re.ASCII)
    if found is None:
        raise MarsError(f"--layers: found {text!r}, expected FIRST-LAST, as in 8-20, or one")
    first, last = found.groups(default=found[1])
    return int(first), int(last)


# Options -----------------------------------------------------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which model is steered by which vector, and how it is run."""
    group = parser.add_argument_group("model")
    add_file_arguments(group)
    add_vector_arguments(group)
    add_template_arguments(group)
    add_context_argument(group)
    group.add_argument(
        "-ub",
        "--ubatch-size",
        type=positive,
        default=512,
        metavar="N",
        help="tokens of a prompt evaluated at a time (default: 512)",
    )
    add_device_arguments(group)
    add_threads_argument(group)
    add_verbose_argument(group)


def add_file_arguments(group: Group, model: str = "model in GGUF format") -> None:
    """Adds the options that name the files of a GGUF model; ``model``: help for --model."""
    group.add_argument("-m", "--model", metavar="FILE", help=model)
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


def add_vector_arguments(group: Group) -> None:
    """Adds the options that say which vector steers, and how."""
    group.add_argument("--vector", metavar="FILE", help="vector that mars_gguf.convert wrote")
    group.add_argument("--demo", action="store_true", help="use the small model of the package")
    group.add_argument(
        "--force",
        action="store_true",
        help="use a vector made for another quantization, other weights or chat template",
    )
    group.add_argument(
        "--way",
        choices=["auto", "cvec", "inline"],
        default="auto",
        help="how the first token is steered (default: auto, which is inline)",
    )


def add_template_arguments(group: Group) -> None:
    """Adds the options that say how messages become the text of a prompt."""
    group.add_argument(
        "--chat-handler",
        choices=HANDLERS,
        metavar="NAME",
        help="how prompts are written (default: mtmd, the model's own chat template): "
        + ", ".join(HANDLERS),
    )
    group.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        metavar="JSON",
        help="variables for the chat template, as in '{\"enable_thinking\": false}'",
    )
    group.add_argument(
        "-rea",
        "--reasoning",
        choices=REASONINGS,
        help="for models that think. off: without thoughts (as llama.cpp's off); thought, answer: "
        "with them (llama.cpp's on), and the token that is judged and steered is the first of the "
        "thought, or the first of the answer after it (default: as the vector was measured; to "
        "measure one, answer if the chat template lets the model think unasked, else off)",
    )


def add_context_argument(group: Group, default: int | None = 4096, usual: str = "4096") -> None:
    group.add_argument(
        "-c",
        "--ctx-size",
        type=context_size,
        default=default,
        metavar="N",
        help=f"tokens of context (default: {usual}; 0: as many as the model was trained with)",
    )


def add_device_arguments(group: Group) -> None:
    """Adds the options that say where the layers of a model go."""
    group.add_argument(
        "-ngl",
        "--n-gpu-layers",
        type=gpu_layers,
        default=0,
        metavar="N",
        help="layers to put on the GPU (default: 0, with --rpc all; all, or -1: all)",
    )
    group.add_argument(
        "--rpc",
        type=servers,
        metavar="HOST:PORT,...",
        help="put them on other machines too, on which python -m mars_gguf.rpc_server runs, or "
        "llama.cpp's rpc-server of the same version",
    )


def add_threads_argument(group: Group) -> None:
    group.add_argument(
        "-t",
        "--threads",
        type=threads,
        metavar="N",
        help="threads to compute with (default: half of the processors, for prompts all)",
    )


def add_verbose_argument(group: Group) -> None:
    group.add_argument("-v", "--verbose", action="store_true", help="show what the libraries say")


def add_checkpoint_arguments(group: Group, dtype: str = "auto", batch_size: int = 8) -> None:
    """Adds the options that say how a transformers model is run."""
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=dtype,
        help=f"of the weights (default: {dtype}; auto: as they are stored)",
    )
    group.add_argument("--device", choices=DEVICES, default="auto")
    group.add_argument(
        "--batch-size",
        type=positive,
        default=batch_size,
        metavar="N",
        help=f"prompts at once (default: {batch_size})",
    )


def add_prompt_arguments(group: Group, probes: int = 100) -> None:
    """Adds the options that say what a model is measured with, and which blocks of it."""
    group.add_argument(
        "--harmful",
        metavar="FILE",
        help="harmful prompts, one a line or JSON Lines (default: built in)",
    )
    group.add_argument("--harmless", metavar="FILE", help="harmless prompts, likewise")
    group.add_argument(
        "--neutral-media",
        metavar="PATH",
        help="your own harmless pictures instead of drawn ones: a directory, "
        "its folders kinds, or a .jsonl file that pairs pictures with prompts",
    )
    group.add_argument(
        "--probes",
        type=positive,
        default=probes,
        metavar="N",
        help=f"neutral pictures or groups of them, and half as many films (default: {probes})",
    )
    group.add_argument(
        "--image-size",
        type=positive,
        default=224,
        metavar="N",
        help="width and height of neutral pictures (default: 224)",
    )
    group.add_argument(
        "--layers", metavar="FIRST-LAST", help="candidate blocks (default: all but the first)"
    )


# What they name ----------------------------------------------------------------------------------


def model_files(args: argparse.Namespace) -> tuple[str, str | None, str]:
    """Finds the model, its mmproj if there is one, and the vector that the options name.

    Downloads what comes from a hub. Returns their paths. Raises MarsError.
    """
    from mars_gguf import demo_model

    if args.demo:
        if args.model or args.mmproj or args.vector or args.hf_repo:
            raise MarsError("--demo brings its own model: give it or --model, not both")
        mmproj = None if args.no_mmproj else str(demo_model.MMPROJ)
        return str(demo_model.TEXT_MODEL), mmproj, str(demo_model.VECTOR)
    require_one_source(args)
    if not (args.model or args.hf_repo):
        raise MarsError("no model. Give one with --model, or --demo for the package's own.")
    if not args.vector:
        raise MarsError(
            "no vector. Make one with python -m mars_gguf.convert, then give it with --vector: "
            "this tool does not run models unsteered."
        )
    return *gguf_files(args), args.vector


def require_one_source(args: argparse.Namespace) -> None:
    """Raises MarsError unless the options name files here or on a hub, not both nor half of one."""
    if args.hf_file and not args.hf_repo:
        raise MarsError("--hf-file names a file of --hf-repo: give both")
    if args.hf_repo and (args.model or not args.hf_file):
        raise MarsError("--hf-repo needs --hf-file, and takes the place of --model")


def gguf_files(args: argparse.Namespace) -> tuple[str, str | None]:
    """Finds the model and its mmproj, if there is one. Downloads what comes from a hub. Returns
    their paths. Raises MarsError."""
    mmproj = None if args.no_mmproj else args.mmproj
    if not args.hf_repo:
        return args.model, mmproj
    model = download(args.hf_repo, args.hf_file)
    if mmproj is None and not args.no_mmproj:
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
        chat_template_kwargs=args.chat_template_kwargs,
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
