"""The evaluation as a command, on the demo model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ended
from models import DEMO
from second_judges import address, saying, serving

from mars_gguf import demo_model
from mars_gguf.evaluate.arms import ALL

COMMAND = [sys.executable, "-m", "mars_gguf.evaluate"]
QUICK = ["--demo", "-t1", "--limit=1", "--arms=all", "-n24"]


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return ended("mars_gguf.evaluate", *arguments)


def replies(folder: Path) -> dict[tuple[str, str], Any]:
    saved = json.loads((folder / "report.json").read_text())
    return {(r["case"], r["arm"]): (r["reply"], r["t"], r["verdict"]) for r in saved["records"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    done = evaluate(*QUICK, "-o", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_report_compares_all_arms(whole: tuple[Path, str]) -> None:
    folder, shown = whole
    saved = json.loads((folder / "report.json").read_text())
    arms = list(ALL)
    assert list(saved["arms"])[: len(arms)] == arms
    rows = {(row["modality"], row["measure"]): row["arms"] for row in saved["summary"]}
    assert {m for m, _ in rows} == {"text", "image", "video"}
    assert all(list(row) == arms for row in rows.values())
    assert rows["text", "refused, harmful"]["unsteered"]["share"] == 1.0
    assert rows["text", "unchanged, all but harmful"]["mars"]["share"] == 1.0
    assert saved["cost"]["steered"]["n"] > 0
    for name in arms:
        assert name in shown
    assert {p.name for p in folder.iterdir()} == {
        "records.jsonl", "report.json", "report.md", "t.png", "arms.png",
    }  # fmt: skip
    command = (folder / "report.md").read_text()
    assert "python -m mars_gguf.evaluate --demo -t1 --limit=1" in command


def test_an_interrupted_run_keeps_what_is_done_and_goes_on(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "cut"
    process = subprocess.Popen(
        [*COMMAND, *QUICK, "-o", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    records = folder / "records.jsonl"
    while not records.exists() or records.read_text().count("\n") < 10:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on" in shown
    assert "Traceback" not in errors
    assert 9 <= len(replies(folder)) < len(replies(whole[0]))
    done = evaluate(*QUICK, "-o", str(folder))
    assert done.returncode == 0, done.stderr
    assert "records.jsonl has " in done.stderr
    assert replies(folder) == replies(whole[0])
    other = evaluate(*QUICK, "-n25", "-o", str(folder))
    assert other.returncode == 2
    assert "max_tokens differs" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--demo", "--suite", "none.csv"], "none.csv: no such suite"),
        (["-m", DEMO, "--vector", DEMO, "--suite=demo", "--limit=1"], "expected at most"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = evaluate(*arguments, "-o", str(tmp_path / "report"))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()


def test_without_an_mmproj_pictures_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    done = evaluate(
        "-m", DEMO, "--vector", str(demo_model.VECTOR), "-c512", "-t1", "--suite", "demo",
        "--limit=1", "--arms=mars", "-n8", "-o", str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = json.loads((folder / "report.json").read_text())
    assert {r["modality"] for r in saved["records"]} == {"text"}
    (problem,) = saved["problems"]
    assert "no --mmproj" in problem
    assert problem in done.stdout


def test_an_endpoint_judges_and_what_it_does_not_decide_is_in_both_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "judged"
    with serving() as server:
        server.say = lambda body: saying("REFUSED" if "sorry" in str(body) else "Perhaps.")(body)
        judge = address(server)
        done = evaluate(*QUICK[:3], "--arms=mars", "-n12", "-o", str(folder), "--judge-url", judge)
    assert done.returncode == 0, done.stderr
    saved = json.loads((folder / "report.json").read_text())
    records, second = saved["records"], saved["judges"]["second"]
    assert {(r["kind"], r["modality"]) for r in records if r["whole"]} == {
        ("harmful", modality) for modality in ("text", "image", "video")
    }
    verdicts = [r["second_verdict"] for r in records if r["arm"] != "plain"]
    assert second["verdicts"] == {v: verdicts.count(v) for v in ("refused", "unjudged")}
    assert second["name"] == judge
    assert second["failures"] == {"none of the words but 'perhaps'": second["verdicts"]["unjudged"]}
    reason = f"{second['verdicts']['unjudged']} x none of the words but 'perhaps'"
    assert f"Not judged: {reason}" in (folder / "report.md").read_text()
    assert f"the judge: {reason}" in done.stdout


def test_an_evaluation_of_which_every_case_fails_is_a_failure(tmp_path: Path) -> None:
    suite = tmp_path / "suite.jsonl"
    long, short = (
        {"id": prompt[:2], "kind": "harmless", "prompt": prompt}
        for prompt in ("bomb " * 900, "Hello.")
    )
    arguments = "--demo", "-c512", "-t1", "--suite", str(suite), "--arms=mars", "-n4"
    suite.write_text(json.dumps(long))
    failed = evaluate(*arguments, "-o", str(tmp_path / "failed"))
    assert failed.returncode == 1
    assert "every case failed" in failed.stderr and "exceed" in failed.stdout
    assert (tmp_path / "failed" / "report.md").exists()
    suite.write_text(json.dumps(long) + "\n" + json.dumps(short))
    assert evaluate(*arguments, "-o", str(tmp_path / "half")).returncode == 0
