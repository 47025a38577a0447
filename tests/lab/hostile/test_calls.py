"""The library, called as a program would that hands on what strangers choose."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lab.hostile import calls
from lab.hostile.calls import call_of, make, run


def test_a_spread_of_hostile_arguments_finds_nothing() -> None:
    ends, problems = run(4, range(120))
    assert problems == []
    assert ends["reply"] > 30 and ends["ValueError"] > 20 and ends.total() == 120


def test_a_call_that_ends_the_process_is_named_and_the_others_are_made_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = "import os, sys\nn = int(sys.argv[4])\nprint(f'call begins: {n}', flush=True)\n"
    child += "os.abort() if n == 3 else print('call ends: \"KeyError\"')"
    monkeypatch.setattr(calls, "CHILD", [sys.executable, "-c", child])
    ends, problems = run(0, range(3, 5))
    assert ends["the process ended"] == 1 and ends["KeyError"] == 1
    assert "call 3 of seed 0" in problems[0] and "--only 3" in problems[0]
    assert "call 4 of seed 0" in problems[1] or call_of(0, 4).wrong


def test_errors_are_told_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raising:
        error: Exception

        def create_completion(self, **_: Any) -> Any:
            raise self.error

        create_chat_completion = create_completion

    llama: Any = Raising()
    plain = next(call for n in range(99) if "grammar" not in (call := call_of(0, n)).arguments)
    for llama.error, told in ((UnicodeError("x"), "ValueError"), (OSError("x"), "OSError: x")):
        assert make(llama, plain) == told
