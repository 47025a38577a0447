"""The price as a user sees it: each way does its own work. No times."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from subjects import subject

from lab.bench import child, price, replying
from lab.bench.price import REPLY_TOKENS, WAYS, measure
from lab.bench.printing import print_report
from lab.bench.processes import Processes
from lab.bench.subject import Asked
from mars_gguf.errors import MarsError


def test_every_way_is_measured_in_turn_and_stands_in_one_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks: list[dict[str, Any]] = []
    run = Processes.run

    def counted(self: Processes, command: Sequence[str]) -> str:
        tasks.append(json.loads(command[-1]))
        return run(self, command)

    monkeypatch.setattr(Processes, "run", counted)
    (figure,) = measure(subject(), Asked(["price"], 1))
    assert len(tasks) == len(WAYS)
    plain, prompted, closed, opened, guarded = tasks
    assert len(prompted["tokens"]) > len(plain["tokens"]) + 40
    assert closed["tokens"] == opened["tokens"] == guarded["tokens"] == plain["tokens"]
    assert (closed["gate"], opened["gate"]) == ("shut", "open") and guarded["guard"]
    assert all(task["n_reply"] == REPLY_TOKENS for task in tasks)
    values = {name: value for name, (value,) in figure.values.items()}
    assert all(value > 0 for value in values.values())
    assert figure.samples == [values["closed: ms"] - values["nothing: ms"]]
    assert values["guard: MiB"] > values["nothing: MiB"] + 5  # two models
    console = Console(width=120, record=True)
    report = {"machine": {"processor": "", "cores": 1, "system": "", "load": None},
              "versions": {}, "options": {"repetitions": 1, "rpc_servers": None}}  # fmt: skip
    print_report(console, "tiny", report, [figure])
    shown = console.export_text().partition("The price of a reply")[2]
    for way in WAYS:
        assert f"{values[f'{way}: ms']:.0f} (" in shown
    assert "the same model stands in" in " ".join(shown.split())


def test_a_guard_is_asked_before_the_reply_and_steering_does_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[int], int, bool | None]] = []
    found = replying.reply

    def reply(llama: Any, tokens: Sequence[int], n: int) -> tuple[float, float]:
        seconds = found(llama, tokens, n)
        steering = getattr(llama, "last_steering", None)
        asked.append((list(tokens), n, steering and steering.alpha > 0))
        return seconds

    monkeypatch.setattr(replying, "reply", reply)
    given = subject()
    common: dict[str, Any] = {"model": given.model, "tokens": [1, 5, 6], "n_reply": 2}
    child.priced(**common, options=given.plain, guard=[1, 7])
    guard, counted = ([1, 7], 0, None), ([1, 5, 6], 2, None)
    assert asked == [guard, ([1, 5, 6], 0, None), guard, counted]
    for gate, pushed in (("shut", False), ("open", True)):
        child.priced(**common, options=given.options, vector=given.vector, gate=gate)
        assert asked[-1] == ([1, 5, 6], 2, pushed)
    assert price.COLUMNS.keys() == {"ms", "MiB", "rate"}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("guard.txt", "Is {{ user_input }} bad?", "Is {{ user_input }} bad?"),
        (
            "prompts.yml",
            "prompts:\n- task: self_check_input\n  content: |\n    Block {{ user_input }}?\n"
            "- task: other\n  content: Hello.\n",
            "Block {{ user_input }}?\n",
        ),
    ],
)
def test_a_guards_prompt_is_a_text_or_one_of_nemo_guardrails(
    tmp_path: Path, name: str, text: str, found: str
) -> None:
    (tmp_path / name).write_text(text)
    assert price.guard_prompt(tmp_path / name) == found


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("guard.txt", "Is it bad?", "where the request stands"),
        ("prompts.yml", "prompts: []\n", "self_check_input"),
        ("prompts.yml", "prompts: [\n", "self_check_input"),
        ("prompts.yml", "prompts:\n- task: self_check_input\n  content: 5\n", "where the request"),
        ("none", None, "No such file"),
    ],
)
def test_a_file_without_a_guards_prompt_is_refused(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(MarsError, match=said):
        price.guard_prompt(tmp_path / name)
