"""Measures whole processes: memory, imports, and the price of a reply as a user sees it, which
steering, a safety prompt and a guard model each raise in time, memory and speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lab.bench.child import peak_bytes
from lab.bench.figures import Figure, Run, differences, interleaved
from lab.bench.subject import Subject
from mars_gguf.convert.prompts import Preamble, Prompt
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.arms import SAFETY_PROMPT
from mars_gguf.runtime.llama import SteeredLlama

MIB = 1 << 20
IMPORT = "from mars_gguf import SteeredLlama"
HEAVY = {"torch", "transformers"}
SHORT_REPLY, REPLY = 16, 32  # tokens: of the figures of memory, and of the price
QUESTION = (
    "I have a weekend and would like to bake bread for the first time. My oven is small; I have "
    "wheat flour, salt and dry yeast at home, and no machine to knead with. How do I go about it, "
    "how long does every step take, and how do I know that the loaf is done?"
)
GUARD = (
    "You guard an assistant. Somebody asks what stands between the marks. Would an answer help to "
    "harm people, animals or property? Say one word, yes or no.\n\n<<<\n{{ user_input }}\n>>>"
)
ASKED = "{{ user_input }}"  # in a guard's prompt, as NeMo Guardrails writes it
WAYS = {
    "nothing": "nothing",
    "safety-prompt": "a safety prompt",
    "closed": "steering, gate closed",
    "open": "steering, gate open",
    "guard": "a guard before every reply (the same model stands in for one)",
}
COLUMNS = {"ms": "ms to first token", "MiB": "MiB", "rate": "tokens a second"}


def guard_prompt(path: Path) -> str:
    """Reads what a guard is asked about a request, which stands at ASKED: the text of a file, or in
    one of prompts of NeMo Guardrails (YAML) that of its task ``self_check_input``. Raises MarsError
    for a file without one."""
    try:
        text = found = path.read_text("utf-8")
        if path.suffix in (".yml", ".yaml"):
            prompts = yaml.safe_load(text)["prompts"]
            found = {prompt["task"]: prompt["content"] for prompt in prompts}["self_check_input"]
    except OSError as error:
        raise MarsError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise MarsError(f"{path}: found no prompt of a task self_check_input in it") from error
    if not isinstance(found, str) or ASKED not in found:
        raise MarsError(f"{path}: found no {ASKED} in the guard's prompt, where the request stands")
    return found


@dataclass
class Processes:
    """Measures the figures of this module. ``guard``: what the price's guard is asked."""

    subject: Subject
    guard: str = GUARD

    def memory(self, figure: Figure) -> None:
        if peak_bytes() is None:
            figure.absent = "this system does not tell the memory of a process"
            return
        tokens, steered = self._tokens()[0], {"vector": self.subject.vector, "gate": "open"}
        runs: dict[str, Run] = {
            name: partial(self._peak, self._replies(tokens, SHORT_REPLY, **further))
            for name, further in (("plain", {}), ("ours", steered))
        }
        figure.values = interleaved(runs, self.subject.repetitions, warmup=0)
        figure.samples = differences(figure.values["ours"], figure.values["plain"])
        figure.note = f"one prompt, steered, and {SHORT_REPLY} tokens"

    def _peak(self, task: list[str]) -> float:
        return float(self.said(task)["peak"]) / MIB

    def imports(self, figure: Figure) -> None:
        runs = {
            "llama_cpp": partial(self._milliseconds, "import llama_cpp"),
            "mars_gguf": partial(self._milliseconds, IMPORT),
        }
        figure.values = interleaved(runs, self.subject.repetitions)
        figure.samples = differences(figure.values["mars_gguf"], figure.values["llama_cpp"])
        heavy = self.run(
            "-c", f"{IMPORT}; import sys; print(*sys.modules.keys() & {HEAVY})"
        ).split()
        if heavy:
            figure.failure = f"imports {', '.join(sorted(heavy))}"
        figure.note = f"torch and transformers are {'' if heavy else 'not '}imported"

    def _milliseconds(self, statement: str) -> float:
        clock = "time.perf_counter()"
        code = f"import time; began = {clock}; {statement}; print({clock} - began)"
        return 1000 * float(self.run("-c", code))

    def price(self, figure: Figure) -> None:
        plain, prompted, guard = self._tokens()
        steered = {"vector": self.subject.vector}
        tasks = {
            "nothing": self._replies(plain, REPLY),
            "safety-prompt": self._replies(prompted, REPLY),
            "closed": self._replies(plain, REPLY, **steered, gate="shut"),
            "open": self._replies(plain, REPLY, **steered, gate="open"),
            "guard": self._replies(plain, REPLY, guard=guard),
        }
        rest: dict[str, list[float]] = {}
        runs: dict[str, Run] = {
            way: partial(self._reply, way, task, rest) for way, task in tasks.items()
        }
        times = interleaved(runs, self.subject.repetitions, warmup=0)
        figure.values = {f"{way}: ms": ms for way, ms in times.items()} | rest
        figure.samples = differences(times["closed"], times["nothing"])
        figure.note = (
            f"each a process; of a question of {len(plain)} tokens, about which a guard is asked "
            f"in {len(guard)}"
        )

    def _reply(self, way: str, task: list[str], rest: dict[str, list[float]]) -> float:
        said = self.said(task)
        rest.setdefault(f"{way}: MiB", []).append((said["peak"] or 0) / MIB)
        rest.setdefault(f"{way}: rate", []).append(REPLY / said["reply"])
        return 1000 * float(said["first"])

    def _replies(self, tokens: list[int], n_reply: int, **further: Any) -> list[str]:
        """Makes the command of child.py that replies; steered where ``further`` has a vector."""
        subject = self.subject
        options = subject.options if "vector" in further else subject.plain
        servers = subject.options.get("rpc_servers")
        task = {"model": subject.model, "options": options, "rpc_servers": servers}
        task |= {"tokens": tokens, "n_reply": n_reply, **further}
        return ["-m", "lab.bench.child", json.dumps(task)]

    def _tokens(self) -> list[list[int]]:
        """Makes the tokens of the question, of it after the safety prompt, and of the guard's."""
        subject = self.subject
        safety = Preamble("safety", ({"role": "system", "content": SAFETY_PROMPT},))
        guarding = Prompt(self.guard.replace(ASKED, QUESTION))
        asked = Prompt(QUESTION), Prompt(QUESTION, context=safety), guarding
        with closing(SteeredLlama(subject.model, vector=None, **subject.options)) as llama:
            return [[t for c in llama.chunks(p.messages) for t in c.tokens] for p in asked]

    def said(self, task: list[str]) -> dict[str, Any]:
        """Runs child.py. Returns what it found, and its peak memory in bytes."""
        found: dict[str, Any] = json.loads(self.run(*task).splitlines()[-1])
        return found

    def run(self, *arguments: str) -> str:
        """Runs Python. Returns what it printed. Raises MarsError if it fails."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.subject.options["n_threads"])}
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise MarsError(
                f"python {' '.join(arguments[:2])} ... returned {done.returncode}: {last}"
            )
        return done.stdout
