"""A real server, and what a hostile client would send it."""

from __future__ import annotations

import sys

import pytest

from lab.hostile import serving
from lab.hostile.__main__ import main, run
from lab.hostile.drawing import CHAT, Request
from lab.hostile.serving import served

UNGUARDED = """
from mars_gguf.runtime import limits
limits._sample_allowed = lambda llama, sampler, context, index=-1: type(sampler).sample(
    sampler, context, index)
from mars_gguf.server.__main__ import main
main()
"""


def test_a_spread_of_hostile_requests_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--requests", "150", "--seed", "11"])
    said = capsys.readouterr().out
    assert "150 requests" in said and "problems: 0." in said


def test_the_request_that_ends_a_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "COMMAND", [sys.executable, "-c", UNGUARDED])
    body = {"messages": [{"role": "user", "content": "x"}], "grammar": 'root ::= "\\x00"'}
    fatal = Request(0, 0, CHAT, body, ("grammar", "user"), "whole", 1, 0.0)
    with served() as server:
        trial = run(server, [fatal])
    assert trial.died_at == [fatal]
    assert "the server ended" in trial.problems()[0] and "grammar" in trial.problems()[0]
