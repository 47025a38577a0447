"""The trials of `python -m tests.attacks`, in short; and that they find what they look for."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import servers
from attacks import calls, fairness, fuzzing
from attacks.__main__ import attack
from attacks.fields import CHAT, FIELDS, ROUTES
from attacks.trial import LEFT, STREAM, Request, draw, left, problems_of, send_all
from servers import ONE_THREAD, running

from mars_gguf.server.request_types import FIELDS as TAKEN
from mars_gguf.server.request_types import KNOWN

UNGUARDED = """
from mars_gguf.runtime import limits
limits._sample_allowed = lambda llama, sampler, context, index=-1: type(sampler).sample(
    sampler, context, index)
from mars_gguf.server.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("name", "count"), [("requests", 150), ("calls", 120), ("vectors", 20_000), ("pictures", 9000)]
)
def test_a_short_trial_finds_nothing(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in fuzzing.READERS:
        pytest.importorskip("atheris")
    monkeypatch.chdir(tmp_path)
    assert attack(name, count, 11, None, []) == []
    assert not list(tmp_path.iterdir())


def test_honest_clients_have_replies_beside_hostile_ones(tmp_path: Path) -> None:
    with running(tmp_path, "--demo", *ONE_THREAD, "--turn_timeout", "1") as server:
        for hostile in (False, True):
            waited = fairness.a_round(server, hostile, 2.0)
            assert waited and min(waited) > 0


# What is drawn -----------------------------------------------------------------------------------


def test_all_pairs_of_fields_are_drawn_and_a_seed_draws_the_same_again() -> None:
    drawn = [draw(0, n) for n in range(4500)]
    pairs = {request.odd for request in drawn if request.path == CHAT}
    assert pairs >= set(combinations(sorted(KNOWN["chat"]), 2))
    assert draw(0, 7) == drawn[7] and draw(1, 7) != drawn[7]


def test_every_field_that_has_an_effect_has_extremes() -> None:
    routes = set().union(*ROUTES.values())
    taken = {name for row in TAKEN if "taken" in row for name in row["names"]}
    assert taken & routes <= FIELDS.keys()


# What is found -----------------------------------------------------------------------------------


def test_the_request_that_ends_a_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "QUICK", UNGUARDED)
    body = {"messages": [{"role": "user", "content": "x"}], "grammar": 'root ::= "\\x00"'}
    fatal = Request(0, 0, CHAT, body, ("grammar", "user"), "whole", 1, 0.0)
    with running(tmp_path, "--demo", *ONE_THREAD) as server:
        trial = send_all(server, [fatal])
    assert trial.died_at == [fatal]
    assert "the server ended" in trial.problems()[0] and "grammar" in trial.problems()[0]


def test_a_call_that_ends_the_process_is_named_and_the_others_are_made_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = "import os, sys\nn = int(sys.argv[2])\nprint(f'call begins: {n}', flush=True)\n"
    child += "os.abort() if n == 3 else print('call ends: \"OSError\"')"
    monkeypatch.setattr(calls, "CHILD", [sys.executable, "-c", child])
    ends, problems = calls.make_all(0, range(3, 5))
    assert ends["the process ended"] == 1 and ends["OSError"] == 1
    assert "--only 3" in problems[0] and "--only 4" in problems[1]


def test_a_file_that_is_read_wrong_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    code = (
        "from attacks import fuzzing\n"
        "fuzzing.READERS['vectors'] = (lambda: lambda data: 1 // (len(data) != 9), "
        "fuzzing.vectors, 1.0)\nfuzzing.main('vectors', '20000', '1')"
    )
    path = ":".join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": path})
    assert done.returncode != 0
    (kept,) = tmp_path.glob("crash-*")
    assert len(kept.read_bytes()) == 9


MARS = {"modality": "text", "t": 0.1, "alpha": 0.0}
CHUNK = json.dumps({"choices": [], "mars": MARS})
FAILED = '{"error": {"type": "internal_server_error"}}'
JSON = "application/json"
ASKED = Request(0, 0, CHAT, {"messages": []}, ("a", "b"), "whole", 1, 0.1)


def sse(*events: str) -> str:
    return "".join(f"data: {event}\n\n" for event in events)


@pytest.mark.parametrize(
    ("status", "kind", "content", "found"),
    [
        (200, JSON, CHUNK, None),
        (400, JSON, '{"error": {"message": "x"}}', None),
        (200, STREAM, sse(CHUNK, "[DONE]"), None),
        (500, JSON, '{"error": {"message": "x"}}', "status 500"),
        (503, JSON, '{"error": {"message": "x"}}', "without Retry-After"),
        (200, JSON, '{"mars": {"modality": "text", "t": NaN, "alpha": 0}}', "NaN is no JSON"),
        (200, JSON, '{"choices": [], "mars": {}}', "does not say that it was judged"),
        (400, JSON, json.dumps({"error": {"message": "x" * 9000}}), "an error of 9"),
        (400, JSON, '{"error": {"message": null}}', "without a message"),
        (200, STREAM, sse(CHUNK), "the stream ends with"),
        (200, STREAM, sse('{"choices": []}', "[DONE]"), "does not say that it was judged"),
        (200, STREAM, "", "a stream of nothing"),
        (200, STREAM, sse(CHUNK, FAILED), "ends with"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_answer_is_found(
    status: int, kind: str, content: str, found: str | None
) -> None:
    problems = list(problems_of(ASKED, status, {"Content-Type": kind}, content.encode()))
    assert problems == [] if found is None else found in " ".join(problems)


def test_a_reply_that_goes_on_without_its_client_is_found() -> None:
    for year, late in ((2000, False), (2999, True)):
        server: Any = SimpleNamespace(line=lambda _, y=year: f"{y}-01-01 00:00:00,000 INFO POST")
        outcome = left(server, ASKED, 0.0)
        assert outcome.status == LEFT and ("went on for" in " ".join(outcome.problems)) == late
