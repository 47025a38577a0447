"""Calls the runtime as a program would that hands on what strangers choose: two arguments at an
extreme or beyond, in a process of its own.

``python -m lab.hostile.calls [--calls 2000] [--seed 0]``: none may end the process, or raise
anything but ValueError (as MarsError is one); what has no type or shape that the argument takes,
what llama-cpp-python raises as well. Exits with 1 if one does, and prints it; ``--only N`` makes
that call alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from inspect import signature
from itertools import combinations
from typing import Any

from lab.hostile.extremes import EXTREMES, INF, NAN, NUMBERS, SHARES, TEXT, WRONG
from mars_gguf import SteeredLlama, demo_model
from mars_gguf.console import command
from mars_gguf.options import positive

NUMERIC = [INF, -INF, NAN, *NUMBERS, *SHARES]
# Arguments that no request has, or whose values here are more than JSON has.
OWN: dict[str, list[Any]] = {
    name: [*EXTREMES.get(name, []), *NUMERIC]
    for name in (
        "temperature", "top_p", "min_p", "typical_p", "tfs_z", "repeat_penalty", "mirostat_tau",
        "presence_penalty", "frequency_penalty", "mirostat_eta",
    )
}  # fmt: skip
METHODS = ("create_chat_completion", "create_completion")
# Schemas are bounded by the server: within a program, whoever writes one may write it out.
OWN["response_format"] = [{"type": "text"}, {"type": "json_object"}, {"type": "none"}]
# What decides how tokens are drawn, and how many.
SAMPLING = {*OWN, "top_k", "mirostat_mode", "seed", "max_tokens", "stop", "logit_bias", "grammar",
            "response_format", "logprobs", "top_logprobs", "echo", "stream"}  # fmt: skip
# How a call may end, and one with a value that has no type or shape of the argument's.
FINE, OF_TYPES = ("reply", "ValueError"), (
    "TypeError", "ArgumentError", "AttributeError", "KeyError"
)  # fmt: skip
CHILD = [sys.executable, "-m", "lab.hostile.calls", "--child"]
BEGINS, ENDS = "call begins: ", "call ends: "
SECONDS = 1200  # for all calls of one process


@dataclass(frozen=True)
class Call:
    """One call; the same for the same seed and number."""

    seed: int
    number: int
    method: str
    arguments: dict[str, Any]
    odd: tuple[str, str]
    wrong: bool  # whether a value has no type or shape that the argument takes

    def __str__(self) -> str:
        return (
            f"call {self.number} of seed {self.seed}: {self.method}({repr(self.arguments)[:500]}), "
            f"odd: {', '.join(self.odd)}\n"
            f"  again: python -m lab.hostile.calls --seed {self.seed} --only {self.number}"
        )


def call_of(seed: int, number: int) -> Call:
    """The call of that number. One after another, all pairs of arguments are drawn."""
    pairs = [(m, pair) for m in METHODS for pair in combinations(_arguments(m), 2)]
    random.Random(seed).shuffle(pairs)
    method, odd = pairs[number % len(pairs)]
    rng = random.Random(f"{seed}/{number}")
    given: dict[str, Any] = {"prompt": TEXT, "max_tokens": 6}
    if method == METHODS[0]:
        given = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 6}
    if rng.random() < 0.5:  # under which what is not finite is worst
        given["grammar"] = rng.choice(EXTREMES["grammar"][2:4])
    wrong = rng.random() < 0.1
    for name in odd:
        given[name] = rng.choice(WRONG if wrong else OWN.get(name) or EXTREMES[name])
    return Call(seed, number, method, given, odd, wrong)


def _arguments(method: str) -> list[str]:
    names = signature(getattr(SteeredLlama.__base__, method)).parameters
    return [name for name in names if name in SAMPLING]


def load() -> SteeredLlama:
    return SteeredLlama(
        str(demo_model.TEXT_MODEL),
        vector=demo_model.VECTOR,
        mmproj=str(demo_model.MMPROJ),
        n_ctx=512,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
    )


def make(llama: SteeredLlama, call: Call) -> str:
    """Makes ``call``; how that ended: "reply", or the name of an error."""
    from llama_cpp import LlamaGrammar

    arguments = dict(call.arguments)
    try:
        if isinstance(text := arguments.get("grammar"), str):
            arguments["grammar"] = LlamaGrammar.from_string(text, verbose=False)
        made: Any = getattr(llama, call.method)(**arguments)
        if not isinstance(made, dict):
            made = [*made][-1]
        if call.method == METHODS[0] and not made.get("mars"):
            return "a reply that was not judged"
    except Exception as error:
        if isinstance(error, ValueError):
            return "ValueError"
        return f"{type(error).__name__}: {error}"
    return "reply"


def _child(seed: int, numbers: range) -> None:
    """Makes the calls, and prints a line before each and one after."""
    llama = load()
    for number in numbers:
        call = call_of(seed, number)
        print(f"\n{BEGINS}{number}", flush=True)
        print(f"\n{ENDS}{json.dumps(make(llama, call))}", flush=True)


def run(seed: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """How these calls ended, by kind, and what is wrong with them; after a call that ends the
    process they go on in another."""
    ends, problems = Counter[str](), list[str]()
    while numbers:
        chosen = ["--seed", seed, "--first", numbers[0], "--calls", len(numbers)]
        done = subprocess.run(
            [*CHILD, *map(str, chosen)], capture_output=True, text=True, timeout=SECONDS
        )
        last = numbers[0]
        for line in done.stdout.splitlines():
            if line.startswith(BEGINS):
                last = int(line.removeprefix(BEGINS))
            elif line.startswith(ENDS):
                how = json.loads(line.removeprefix(ENDS))
                ends[how.partition(":")[0]] += 1
                wrong = call_of(seed, last).wrong
                if how.partition(":")[0] not in (*FINE, *(OF_TYPES if wrong else ())):
                    problems.append(f"{how}\n  {call_of(seed, last)}")
        if done.returncode == 0:
            break
        ends["the process ended"] += 1
        said = done.stderr.strip().splitlines()[-2:]
        problems.append(f"the process ended: {' '.join(said)}\n  {call_of(seed, last)}")
        numbers = range(last + 1, numbers.stop)
    return ends, problems


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="lab.hostile.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--calls", type=positive, default=2000, metavar="N")
    p.add_argument("--seed", type=int, default=0, metavar="N")
    p.add_argument("--only", type=int, metavar="N", help="make the call of that number alone")
    p.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    first, calls = (args.first, args.calls) if args.only is None else (args.only, 1)
    if args.child:
        _child(args.seed, range(first, first + calls))
        return
    with command():
        ends, problems = run(args.seed, range(first, first + calls))
    print(f"{ends.total()} calls: " + ", ".join(f"{n} {how}" for how, n in ends.most_common()))
    for problem in problems[:10]:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} problems", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
