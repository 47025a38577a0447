"""Measures the price as a user sees it: what steering, a safety prompt and a guard model each add
to the time before a reply, to memory and to speed. Each way is a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lab.bench.figures import Figure, differences, interleaved
from lab.bench.processes import MIB, Processes, child
from lab.bench.subject import Asked, Subject
from mars_gguf.convert.prompts import Context, Prompt
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.arms import SAFETY_PROMPT
from mars_gguf.runtime.llama import SteeredLlama

REPLY_TOKENS = 32
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
            tasks = {
                prompt["task"]: prompt["content"] for prompt in yaml.safe_load(text)["prompts"]
            }
            found = tasks["self_check_input"]
    except OSError as error:
        raise MarsError(f"{path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise MarsError(f"{path}: found no prompt of a task self_check_input in it") from error
    if not isinstance(found, str) or ASKED not in found:
        raise MarsError(f"{path}: found no {ASKED} in the guard's prompt, where the request stands")
    return found


def measure(subject: Subject, asked: Asked, guard: str = GUARD) -> Iterator[Figure]:
    """Measures the figure, if it is asked for, with a ``guard`` that is asked so. Raises MarsError
    if a process fails."""
    for figure in asked.figures(["price"]):
        processes, rest = Processes(subject), dict[str, list[float]]()
        tokens = _tokens(subject, guard)
        tasks = _tasks(subject, *tokens)
        runs = {way: partial(_run, processes, way, task, rest) for way, task in tasks}
        times = interleaved(runs, asked.repetitions, warmup=0)
        figure.values = {f"{way}: ms": ms for way, ms in times.items()} | rest
        figure.samples = differences(times["closed"], times["nothing"])
        plain, _, guarding = map(len, tokens)
        figure.note = (
            f"each a process; of a question of {plain} tokens, about which a guard is asked in "
            f"{guarding}"
        )
        yield figure


def _run(processes: Processes, way: str, task: list[str], rest: dict[str, list[float]]) -> float:
    said = json.loads(processes.run(task).splitlines()[-1])
    rest.setdefault(f"{way}: MiB", []).append((said["peak"] or 0) / MIB)
    rest.setdefault(f"{way}: rate", []).append(REPLY_TOKENS / said["reply"])
    return 1000 * float(said["first"])


def _tasks(
    subject: Subject, plain: list[int], prompted: list[int], guard: list[int]
) -> Iterator[tuple[str, list[str]]]:
    common: dict[str, Any] = {"model": subject.model, "n_reply": REPLY_TOKENS}
    common |= {"rpc_servers": subject.options.get("rpc_servers")}
    without = common | {"options": subject.plain}
    steered = common | {"options": subject.options, "tokens": plain, "vector": subject.vector}
    yield "nothing", child("priced", **without, tokens=plain)
    yield "safety-prompt", child("priced", **without, tokens=prompted)
    yield "closed", child("priced", **steered, gate="shut")
    yield "open", child("priced", **steered, gate="open")
    yield "guard", child("priced", **without, tokens=plain, guard=guard)


def _tokens(subject: Subject, guard: str) -> list[list[int]]:
    """Makes the tokens of the question, of it after the safety prompt, and of the guard's."""
    safety = Context("safety", ({"role": "system", "content": SAFETY_PROMPT},))
    guarding = Prompt(guard.replace(ASKED, QUESTION))
    asked = Prompt(QUESTION), Prompt(QUESTION, context=safety), guarding
    with closing(SteeredLlama(subject.model, vector=None, **subject.options)) as llama:
        return [[t for c in llama.chunks(p.messages) for t in c.tokens] for p in asked]
