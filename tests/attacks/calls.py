"""Calls of the runtime as a program makes them that hands on what strangers choose: two arguments
at an extreme or beyond, in a process of its own.

None may end the process, or raise anything but ValueError (as MarsError is one); for what has no
type or shape that the argument takes, what llama-cpp-python raises as well.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from inspect import signature
from itertools import combinations
from typing import Any

from attacks.fields import FIELDS, INF, NAN, NUMBERS, SHARES, TEXT, WRONG
from llama_cpp import LlamaGrammar
from models import DEMO, DEMO_MMPROJ, OPTIONS

from mars_gguf import SteeredLlama, demo_model

METHODS = ("create_chat_completion", "create_completion")
# Arguments that no request has, or whose values here are more than JSON has.
OWN: dict[str, list[Any]] = {
    name: [*(FIELDS[name].sent if name in FIELDS else []), INF, -INF, NAN, *NUMBERS, *SHARES]
    for name in (
        "temperature", "top_p", "min_p", "typical_p", "tfs_z", "repeat_penalty", "mirostat_tau",
        "presence_penalty", "frequency_penalty", "mirostat_eta",
    )
}  # fmt: skip
# Schemas are bounded by the server: within a program, whoever writes one may write it out.
OWN["response_format"] = [{"type": "text"}, {"type": "json_object"}, {"type": "none"}]
# What decides how tokens are drawn, and how many.
SAMPLING = {*OWN, "top_k", "mirostat_mode", "seed", "max_tokens", "stop", "logit_bias", "grammar",
            "response_format", "logprobs", "top_logprobs", "echo", "stream"}  # fmt: skip
# How a call may end, and one with a value that has no type or shape of the argument's.
FINE = ("reply", "ValueError")
OF_TYPES = ("TypeError", "ArgumentError", "AttributeError", "KeyError")
CHILD = [sys.executable, __file__]
BEGINS, ENDS = "call begins: ", "call ends: "
SECONDS = 1200  # for all calls of one process


@dataclass(frozen=True)
class Call:
    """One call; the same for the same seed and number. ``wrong``: whether a value has no type or
    shape that the argument takes."""

    seed: int
    number: int
    method: str
    arguments: dict[str, Any]
    odd: tuple[str, str]
    wrong: bool

    def __str__(self) -> str:
        return (
            f"--seed {self.seed} --only {self.number}: {self.method}({repr(self.arguments)[:500]}),"
            f" odd: {', '.join(self.odd)}"
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
        given["grammar"] = rng.choice(FIELDS["grammar"].sent[2:4])
    wrong = rng.random() < 0.1
    for name in odd:
        given[name] = rng.choice(WRONG if wrong else OWN.get(name) or FIELDS[name].sent)
    return Call(seed, number, method, given, odd, wrong)


def _arguments(method: str) -> list[str]:
    names = signature(getattr(SteeredLlama.__base__, method)).parameters
    return [name for name in names if name in SAMPLING]


def make(llama: Any, call: Call) -> str:
    """Makes ``call``; how that ended: "reply", or the name of an error."""
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
        return "ValueError" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return "reply"


def _child(seed: int, first: int, count: int) -> None:
    """Makes the calls, and prints a line before each and one after."""
    options = OPTIONS | {"n_ctx": 512, "logits_all": True}
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, mmproj=DEMO_MMPROJ, **options)
    for number in range(first, first + count):
        call = call_of(seed, number)
        print(f"\n{BEGINS}{number}", flush=True)
        print(f"\n{ENDS}{json.dumps(make(llama, call))}", flush=True)


def make_all(seed: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """How these calls ended, by kind, and what is wrong with them; after a call that ends the
    process they go on in another."""
    ends, problems = Counter[str](), list[str]()
    while numbers:
        chosen = map(str, (seed, numbers[0], len(numbers)))
        done = subprocess.run(
            [*CHILD, *chosen], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        last = numbers[0]
        for line in done.stdout.splitlines():
            if line.startswith(BEGINS):
                last = int(line.removeprefix(BEGINS))
            elif line.startswith(ENDS):
                how = json.loads(line.removeprefix(ENDS))
                kind = how.partition(":")[0]
                ends[kind] += 1
                if kind not in (*FINE, *(OF_TYPES if call_of(seed, last).wrong else ())):
                    problems.append(f"{how}\n  {call_of(seed, last)}")
        if done.returncode == 0:
            break
        ends["the process ended"] += 1
        said = done.stderr.strip().splitlines()[-2:]
        problems.append(f"the process ended: {' '.join(said)}\n  {call_of(seed, last)}")
        numbers = range(last + 1, numbers.stop)
    return ends, problems


if __name__ == "__main__":
    _child(*map(int, sys.argv[1:]))
