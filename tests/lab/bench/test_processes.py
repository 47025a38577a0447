"""Whole processes: each does the work that its figure names. No times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from models import OPTIONS
from subjects import subject

from lab.bench import child
from lab.bench.figures import Figure
from lab.bench.printing import report_lines
from lab.bench.processes import REPLY, WAYS, Processes, guard_prompt
from mars_gguf.errors import MarsError


def test_every_way_is_measured_in_turn_and_stands_in_one_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks: list[dict[str, Any]] = []
    run = Processes.run

    def counted(self: Processes, *arguments: str) -> str:
        tasks.append(json.loads(arguments[-1]))
        return run(self, *arguments)

    monkeypatch.setattr(Processes, "run", counted)
    figure = Figure.named("price")
    Processes(subject(repetitions=1)).price(figure)
    assert len(tasks) == len(WAYS)
    plain, prompted, closed, opened, guarded = tasks
    assert len(prompted["tokens"]) > len(plain["tokens"]) + 40
    assert closed["tokens"] == opened["tokens"] == guarded["tokens"] == plain["tokens"]
    assert (closed["gate"], opened["gate"]) == ("shut", "open") and guarded["guard"]
    assert all(task["n_reply"] == REPLY for task in tasks)
    values = {name: value for name, (value,) in figure.values.items()}
    assert all(value > 0 for value in values.values())
    assert figure.samples == [values["closed: ms"] - values["nothing: ms"]]
    assert values["guard: MiB"] > values["nothing: MiB"] + 5  # two models
    report = {"machine": {"processor": "", "cores": 1, "system": "", "load": None},
              "versions": {}, "options": {"repetitions": 1, "rpc_servers": None}}  # fmt: skip
    shown = "\n".join(report_lines("tiny", report, [figure]))
    for way, words in WAYS.items():
        assert f"| {words} | {values[f'{way}: ms']:.0f} (" in shown


def test_a_guard_is_asked_before_the_reply_and_steering_does_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[int], int, bool | None]] = []
    found = child.reply

    def reply(llama: Any, tokens: Sequence[int], n: int) -> tuple[float, float]:
        seconds = found(llama, tokens, n)
        steering = getattr(llama, "last_steering", None)
        asked.append((list(tokens), n, steering and steering.alpha > 0))
        return seconds

    monkeypatch.setattr(child, "reply", reply)
    given = subject()
    common: dict[str, Any] = {"model": given.model, "tokens": [1, 5, 6], "n_reply": 2}
    child.replies(**common, options=given.plain, guard=[1, 7])
    guard, counted = ([1, 7], 0, None), ([1, 5, 6], 2, None)
    assert asked == [guard, ([1, 5, 6], 0, None), guard, counted]
    for gate, pushed in (("shut", False), ("open", True)):
        child.replies(**common, options=given.options, vector=given.vector, gate=gate)
        assert asked[-1] == ([1, 5, 6], 2, pushed)


GUARDS: list[tuple[str, str | None, str, bool]] = [  # a file, its text; the prompt, or the error
    ("guard.txt", "Is {{ user_input }} bad?", "Is {{ user_input }} bad?", True),
    (
        "prompts.yml",
        "prompts:\n- task: self_check_input\n  content: |\n    Block {{ user_input }}?\n"
        "- task: other\n  content: Hello.\n",
        "Block {{ user_input }}?\n",
        True,
    ),
    ("guard.txt", "Is it bad?", "where the request stands", False),
    ("prompts.yml", "prompts: []\n", "self_check_input", False),
    ("prompts.yml", "prompts: [\n", "self_check_input", False),
    ("prompts.yml", "prompts:\n- task: self_check_input\n  content: 5\n", "the request", False),
    ("none", None, "No such file", False),
]


@pytest.mark.parametrize(("name", "text", "expected", "fine"), GUARDS)
def test_a_guards_prompt_is_a_text_or_one_of_nemo_guardrails(
    tmp_path: Path, name: str, text: str | None, expected: str, fine: bool
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    if fine:
        assert guard_prompt(tmp_path / name) == expected
        return
    with pytest.raises(MarsError, match=expected):
        guard_prompt(tmp_path / name)


def test_options_reach_every_kind_of_model() -> None:
    given = subject(
        template="chatml", chat_template_kwargs={"a": 1}, reasoning="off", way="auto", force=True,
        n_ubatch=64,
    )  # fmt: skip
    assert given.plain == OPTIONS | {"n_gpu_layers": 0, "n_ubatch": 64}
    assert given.reading == {
        "chat_handler": "chatml", "chat_template_kwargs": {"a": 1}, "n_threads": 1,
        "n_gpu_layers": 0, "reasoning": "off",
    }  # fmt: skip
