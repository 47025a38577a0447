"""What the commands share: how a steered model is named on the command line, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mars_gguf.errors import MarsError, SteeringError

if TYPE_CHECKING:
    from mars_gguf.llama import SteeredLlama


def printable(line: str) -> str:
    """``line`` with control characters escaped: what a file holds must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


@contextmanager
def command() -> Iterator[None]:
    """Turn bad input into a message and exit code 2, a failure of steering into exit code 1,
    Ctrl-C into exit code 130; no traceback. A reader that went away ends the command."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MarsError, SteeringError, OSError) as error:
        print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)
        sys.exit(1 if isinstance(error, SteeringError) else 2)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def positive(text: str) -> int:
    """An option's value as a whole number from 1 to 2**24, for argparse."""
    value = int(text)
    if not 1 <= value <= 1 << 24:
        raise argparse.ArgumentTypeError(f"found {value}, expected 1 to {1 << 24}")
    return value


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model is steered by which vector."""
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="FILE", help="model in GGUF format")
    group.add_argument("--mmproj", metavar="FILE", help="multimodal projector of the model")
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
        help="how the first token is steered (default: auto)",
    )
    group.add_argument("-c", "--ctx-size", type=positive, default=4096, metavar="N")
    group.add_argument("-ngl", "--n-gpu-layers", type=int, default=0, metavar="N")
    group.add_argument("-t", "--threads", type=positive, metavar="N")
    group.add_argument("-v", "--verbose", action="store_true", help="show what llama.cpp says")


def load_steered(args: argparse.Namespace) -> SteeredLlama:
    """The steered model that the options name. Raises MarsError."""
    from mars_gguf.llama import SteeredLlama

    if args.demo:
        from mars_gguf import demo_model

        if args.model or args.mmproj or args.vector:
            raise MarsError("--demo brings its own model: give it or --model, not both")
        model, mmproj, vector = (
            str(demo_model.TEXT_MODEL),
            str(demo_model.MMPROJ),
            str(demo_model.VECTOR),
        )
        args.ctx_size = min(args.ctx_size, demo_model.CONTEXT)
    elif not args.model:
        raise MarsError("no model. Give one with --model, or --demo for the package's own.")
    elif not args.vector:
        raise MarsError(
            "no vector. Make one with python -m mars_gguf.convert, then give it with --vector: "
            "this tool does not run models unsteered."
        )
    else:
        model, mmproj, vector = args.model, args.mmproj, args.vector
    return SteeredLlama(
        model,
        vector=vector,
        mmproj=mmproj,
        way=args.way,
        force=args.force,
        n_ctx=args.ctx_size,
        n_gpu_layers=args.n_gpu_layers,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=args.verbose,
    )
