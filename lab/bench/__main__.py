"""``python -m lab.bench -m MODEL.gguf [--mmproj MMPROJ.gguf] --vector VECTOR.gguf`` measures
what the tool costs, each figure held against the limit of what it is built on."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lab.bench.converting import conversion
from lab.bench.figures import TABLE, Figure, missed
from lab.bench.printing import machine, report_lines, versions
from lab.bench.processes import GUARD, Processes, guard_prompt
from lab.bench.replying import measure_replies, pictures
from lab.bench.subject import Subject, demo_prompts
from mars_gguf.console import command
from mars_gguf.convert.choices import Prompts
from mars_gguf.errors import MarsError
from mars_gguf.files import atomic
from mars_gguf.options import add_model_arguments, llama_options, model_files, positive
from mars_gguf.runtime.assembly import ALL_LAYERS
from mars_gguf.runtime.rpc import use_servers
from mars_gguf.runtime.weights import require_gguf
from mars_gguf.vectors import read_vector

NAMES = list(TABLE)
NO_AIM = "no aim: too small a model to chat with"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m lab.bench", description=__doc__, epilog=f"Figures: {', '.join(NAMES)}."
    )
    add_model_arguments(p)
    p.add_argument(
        "--only",
        metavar="NAME,...",
        type=lambda text: text.split(","),
        default=[name for name in NAMES if name not in ("conversion", "price")],
        help="figures to measure, see below (default: all but conversion and price, which take "
        "minutes)",
    )
    p.add_argument(
        "--repetitions", type=positive, default=15, metavar="N", help="of each run (default: 15)"
    )
    p.add_argument("--json", type=Path, metavar="FILE", help="write all samples as JSON")
    p.add_argument("--check", action="store_true", help="exit with 1 if an aim is missed")
    p.add_argument(
        "--guard-prompt",
        type=Path,
        metavar="FILE",
        help="what the guard of the price is asked: a text with {{ user_input }}, or a prompts.yml "
        "of NeMo Guardrails (default: a question of ours)",
    )
    return p


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    with command():
        _check_arguments(args)
        subject = _subject(args)
        report = _report(args, argv, subject)
        figures = _measure(args, subject)
        if args.demo:
            figures = [replace(figure, aim=None) for figure in figures]
        report["figures"] = [figure.as_json() for figure in figures]
        identity = report["model"]
        name, threads = identity["name"] or Path(subject.model).name, subject.options["n_threads"]
        title = f"{name}, {identity['quantization']}, {threads} threads"
        print("\n".join(report_lines(title, report, figures)))
        if args.json:
            with atomic(args.json) as path:
                path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if args.check and missed(figures):
            names = ", ".join(figure.name for figure in missed(figures))
            print(f"aims missed: {names}", file=sys.stderr)
            sys.exit(1)


def _check_arguments(args: argparse.Namespace) -> None:
    unknown = [name for name in args.only if name not in NAMES]
    if unknown:
        raise MarsError(f"no figure {', '.join(unknown)}, expected some of {', '.join(NAMES)}")
    if args.json and args.json.is_dir():
        raise MarsError(f"{args.json}: a folder, expected the name of a file to write")


def _subject(args: argparse.Namespace) -> Subject:
    """The model and the prompts that the options name. Raises MarsError."""
    model, mmproj, vector = model_files(args)
    for path in filter(None, (model, mmproj)):
        require_gguf(path)
    if args.rpc:
        use_servers(args.rpc)
        args.n_gpu_layers = args.n_gpu_layers or ALL_LAYERS
    args.threads = args.threads or max(1, (os.cpu_count() or 2) // 2)
    prompts = demo_prompts(sees=mmproj is not None) if args.demo else Prompts()
    return Subject(model, mmproj, vector, llama_options(args), args.repetitions, prompts)


def _report(args: argparse.Namespace, argv: Sequence[str], subject: Subject) -> dict[str, Any]:
    """All that the figures depend on."""
    files = [Path(p) for p in (subject.model, subject.mmproj, subject.vector) if p]
    report = {
        "command": shlex.join(["python", "-m", "lab.bench", *argv]),
        "machine": machine(),
        "versions": versions(),
        "model": {
            **asdict(read_vector(subject.vector).model),
            "files": {path.name: path.stat().st_size for path in files},
        },
        "options": {"repetitions": args.repetitions, **subject.options},
    }
    return report | ({"aims": NO_AIM} if args.demo else {})


def _measure(args: argparse.Namespace, subject: Subject) -> list[Figure]:
    processes = Processes(subject, guard_prompt(args.guard_prompt) if args.guard_prompt else GUARD)
    figures = [Figure.named(name) for name in NAMES if name in args.only]
    ways: dict[str, Callable[[Figure], None]] = {
        # First: the models below are not yet in the memory of this process.
        "memory-runtime": processes.memory,
        "import": processes.imports,
        "price": processes.price,
        "first-token-pictures": partial(pictures, subject=subject),
        "conversion": partial(conversion, subject=subject),
    }
    for name, way in ways.items():
        for figure in figures:
            if figure.name == name:
                way(figure)
    measure_replies(figures, subject)
    return figures


if __name__ == "__main__":
    main()
