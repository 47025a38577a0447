"""``python -m lab.devices [-ngl all] [--rpc HOST:PORT]`` checks steering on the device that
llama.cpp computes on, and prints a row of the table in docs/DEVICES.md.

Without options that is the CPU; ``-ngl all`` puts all layers on the first GPU of this build of
llama.cpp (Vulkan, CUDA, Metal, ...), ``--rpc`` on another machine. The model is the package's
own, or that of ``--model``, ``--mmproj`` and ``--vector``. All is compared on one and the same
device: the states seen by the callbacks in C and in Python with those seen by an independent one;
replies with the gate shut with plain llama-cpp-python, over two turns; steered replies with an
independent callback; on text and on a picture. "equal" is to the bit; else the largest difference
is printed, in units of what is compared (states, logits, t), and the exit code is 1. "plain cvec"
is plain llama-cpp-python with a control vector that changes: where that dies, so does --way cvec.
"""

from __future__ import annotations

import argparse
import math
import sys
from datetime import date
from pathlib import Path
from typing import Any

import llama_cpp

from lab.devices import checks
from lab.devices.alone import alone
from lab.devices.checks import Subject
from mars_gguf import demo
from mars_gguf.console import command
from mars_gguf.options import add_model_arguments, llama_options, model_files
from mars_gguf.runtime.assembly import ALL_LAYERS
from mars_gguf.runtime.devices import CPU, devices
from mars_gguf.runtime.rpc import use_servers

SHOWN = {"text": "text", "image": "picture"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="lab.devices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(p)
    p.add_argument("--note", default="", metavar="TEXT", help="what else is to be said in the row")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    args.demo = args.demo or not (args.model or args.hf_repo)
    with command():
        if args.rpc:
            use_servers(args.rpc)
            args.n_gpu_layers = args.n_gpu_layers or ALL_LAYERS
        subject = _subject(args)
        decided, layers = {}, ""
        for shown in subject.prompts:
            decided[shown], layers = alone(checks.decision, subject, shown, args.rpc)
        found = {
            name: {shown: alone(check, subject, shown, args.rpc)[0] for shown in subject.prompts}
            for name, check in checks.CHECKS.items()
        }
        cells = [
            _device(args.n_gpu_layers, args.note),
            f"llama-cpp-python {llama_cpp.__version__}",
            Path(subject.model).name,
            layers,
            *map(_cell, found.values()),
            ", ".join(f"{shown} {steering.t:.4f}" for shown, steering in decided.items()),
            date.today().isoformat(),
        ]
        head = ["device", "with", "model", "layers offloaded", *checks.CHECKS, "t", "when"]
        print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n| {' | '.join(cells)} |")
        if any(far != 0 for by_prompt in found.values() for far in by_prompt.values()):
            sys.exit(1)


def _subject(args: argparse.Namespace) -> Subject:
    model, mmproj, vector = model_files(args)
    options = llama_options(args)
    for name in ("template", "reasoning", "way", "force", "rpc_servers"):
        options.pop(name)
    # One thread: on the CPU the same bits every time.
    options |= {"n_threads": args.threads or 1, "n_threads_batch": args.threads or 1}
    asked: dict[str, Any] = {
        SHOWN[r.modality]: r.messages(steered=False)  # plain models are asked, too
        for r in reversed(demo.requests())
        if r.kind == "harmful" and r.modality in SHOWN and (mmproj or r.modality == "text")
    }
    return Subject(model, mmproj, vector, options, asked)


def _device(n_gpu_layers: int, note: str) -> str:
    """Names the device that all layers are on: with llama.cpp's order, servers before GPUs."""
    found = [d for d in devices() if (d.type == CPU) == (n_gpu_layers == 0)]
    servers = [d for d in found if d.name.startswith("RPC")]
    device = (servers or found)[0]
    return ", ".join(filter(None, (f"{device.name} ({device.description})", note)))


def _cell(by_prompt: dict[str, float]) -> str:
    said = {shown: f"{far:.1e}" if far else "equal" for shown, far in by_prompt.items()}
    said |= {shown: "the process dies" for shown, far in by_prompt.items() if math.isnan(far)}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{shown} {found}" for shown, found in said.items())


if __name__ == "__main__":
    main()
