"""``python -m lab.devices [-ngl all] [--rpc HOST:PORT]`` checks steering on the device that
llama.cpp computes on, and prints a row of the table in docs/DEVICES.md.

Without options that is the CPU; ``-ngl all`` puts all layers on the first GPU of this build of
llama.cpp (Vulkan, CUDA, Metal, ...), ``--rpc`` on another machine. The model is the package's
own, or that of ``--model``, ``--mmproj`` and ``--vector``. All is compared on one and the same
device, on a text and on a picture. "equal" is to the bit; else the largest difference of logits or
t is printed, and the exit code is 1. Where the process dies, the row ends.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_chat_format import MTMDChatHandler

from lab.bench.subject import STEERED_ONLY
from mars_gguf import demo
from mars_gguf.console import command
from mars_gguf.options import add_model_arguments, llama_options, model_files
from mars_gguf.runtime.assembly import ALL_LAYERS
from mars_gguf.runtime.compat import ggml
from mars_gguf.runtime.devices import CPU, devices
from mars_gguf.runtime.judging import Steering
from mars_gguf.runtime.llama import SteeredLlama, Way
from mars_gguf.runtime.mtmd import silence_mtmd
from mars_gguf.runtime.rpc import use_servers
from mars_gguf.steering import Policy

SHOWN = {"text": "text", "image": "picture"}
Rows = npt.NDArray[np.float32]
Messages = list[Any]


@dataclass(frozen=True)
class Subject:
    """A model, its vector, and how it is run."""

    model: str
    mmproj: str | None
    vector: str
    options: dict[str, Any]

    def steered(self, **options: Any) -> SteeredLlama:
        options = self.options | options
        return SteeredLlama(self.model, vector=self.vector, mmproj=self.mmproj, **options)

    def plain(self) -> dict[str, Any]:
        """The same options for plain llama-cpp-python."""
        handler = MTMDChatHandler(self.mmproj, verbose=False) if self.mmproj else None
        return self.options | {"model_path": self.model, "chat_handler": handler}


class Watched(llama_cpp.Llama):
    """A ``Llama`` that sees the state of the last token after one block by an eval callback of its
    own, each time that it is computed, and adds to it at the place ``at`` of these. Of the runtime
    it uses ggml alone."""

    def __init__(self, block: int, addition: Rows, at: int, **options: Any) -> None:
        self.node, self.addition, self.at = f"l_out-{block}".encode(), addition, at
        self.states: list[Rows] = []
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)
        super().__init__(**options)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "context_params":
            value.cb_eval = self._callback
        super().__setattr__(name, value)

    def _on_node(self, tensor: int, ask: bool, _user_data: int) -> bool:
        if ggml.ggml_get_name(tensor) != self.node:
            return not ask
        n_rows = ggml.ggml_nrows(tensor)
        if not ask and n_rows:
            row = np.empty(ggml.ggml_nelements(tensor) // n_rows, np.float32)
            place = (n_rows - 1) * row.nbytes
            ggml.ggml_backend_tensor_get(tensor, row.ctypes.data, place, row.nbytes)
            if self.at == len(self.states):
                changed = row + self.addition
                ggml.ggml_backend_tensor_set(tensor, changed.ctypes.data, place, row.nbytes)
            self.states.append(row)
        return True


def say(llama: llama_cpp.Llama, messages: Messages, max_tokens: int = 5) -> Rows:
    """Reads the logits of a greedy reply, [n, n_vocab]."""
    rows: list[Rows] = []

    def keep(_ids: Any, scores: Rows) -> Rows:
        rows.append(scores.copy())
        return scores

    llama.create_chat_completion(
        messages, temperature=0.0, max_tokens=max_tokens, repeat_penalty=1.0,
        logits_processor=llama_cpp.LogitsProcessorList([keep]),
    )  # fmt: skip
    return np.stack(rows)


def pushed(subject: Subject, messages: Messages, way: Way) -> tuple[Rows, Steering, Policy]:
    """Reads the logits of a reply whose state was pushed by D, the length of the direction."""
    with closing(subject.steered(way=way)) as llama:
        policy = replace(llama.policies[0], gate="open", strength=1.0)
        with llama.using(policy):
            logits = say(llama, messages)
        assert llama.last_steering is not None and llama.last_steering.way == way
        return logits, llama.last_steering, policy


def gate_shut(subject: Subject, messages: Messages) -> float:
    """Compares logits of a reply and the next turn, the gate shut, with plain llama-cpp-python."""
    later = [*messages, {"role": "assistant", "content": "Tea."}]
    later.append({"role": "user", "content": "And why is that?"})
    with closing(llama_cpp.Llama(**subject.plain())) as plain:
        expected = np.concatenate([say(plain, asked) for asked in (messages, later)])
    with closing(subject.steered()) as llama, llama.using(replace(llama.policies[0], gate="shut")):
        return far(np.concatenate([say(llama, asked) for asked in (messages, later)]), expected)


def gate_open(subject: Subject, messages: Messages) -> float:
    """Compares t, and logits of a reply steered inline, with those of an independent callback that
    sees the same state and adds the same."""
    logits, steering, policy = pushed(subject, messages, "inline")
    addition, at = policy.push(steering.alpha), -1
    for n in 1, 5:  # a first token alone, of the prompt: its last token is the last that is seen
        with closing(Watched(policy.block, addition, at, **subject.plain())) as watched:
            expected = say(watched, messages, n)
            at = at if n > 1 else len(watched.states) - 1
    t = policy.geometry.coordinate(watched.states[at], steering.modality)
    return max(abs(t - (steering.t or 0.0)), far(logits, expected))


def by_control_vector(subject: Subject, messages: Messages) -> float:
    """Compares t of a reply steered by cvec with one steered inline. (That the state moved by
    alpha, the runtime checks of every reply.)"""
    inline, cvec = (pushed(subject, messages, way)[1].t or 0.0 for way in ("inline", "cvec"))
    return abs(inline - cvec)


def far(a: Rows, b: Rows) -> float:
    """Measures the largest difference; infinite for what is not finite or of another length."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max())


CHECKS = {
    "gate shut = plain": gate_shut,
    "gate open = independent callback": gate_open,
    "cvec = inline": by_control_vector,
}


def device_name(n_gpu_layers: int) -> str:
    """Names the device that all layers are on: with llama.cpp's order, servers before GPUs."""
    found = [d for d in devices() if (d.type == CPU) == (n_gpu_layers == 0)]
    servers = [d for d in found if d.name.startswith("RPC")]
    device = (servers or found)[0]
    return f"{device.name} ({device.description})"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser("lab.devices", description=__doc__.split("\n\n")[0])
    add_model_arguments(p)
    args = p.parse_args(argv)
    args.demo = args.demo or not (args.model or args.hf_repo)
    with command():
        if args.rpc:
            use_servers(args.rpc)
            args.n_gpu_layers = args.n_gpu_layers or ALL_LAYERS
        silence_mtmd()
        model, mmproj, vector = model_files(args)
        options = {k: v for k, v in llama_options(args).items() if k not in STEERED_ONLY}
        # One thread: on the CPU the same bits every time.
        options |= {"n_threads": args.threads or 1, "n_threads_batch": args.threads or 1}
        prompts: dict[str, Any] = {
            SHOWN[r.modality]: r.messages(steered=False)  # plain models are asked, too
            for r in reversed(demo.requests())
            if r.kind == "harmful" and r.modality in SHOWN and (mmproj or r.modality == "text")
        }
        print_row(Subject(model, mmproj, vector, options), prompts, device_name(args.n_gpu_layers))


def print_row(subject: Subject, prompts: dict[str, Messages], device: str) -> None:
    """Prints the table, each cell as soon as it is found. Exits with 1 if there is a difference."""
    head = ["device", "with", "model", *CHECKS, "when"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    version = f"llama-cpp-python {llama_cpp.__version__}"
    print(f"| {device} | {version} | {Path(subject.model).name}", end="", flush=True)
    equal = True
    for check in CHECKS.values():
        found = {shown: check(subject, messages) for shown, messages in prompts.items()}
        differ = [f"{shown} {difference:.1e}" for shown, difference in found.items() if difference]
        print(f" | {', '.join(differ) or 'equal'}", end="", flush=True)
        equal = equal and not differ
    print(f" | {date.today().isoformat()} |")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
