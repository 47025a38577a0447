"""The chat command, in a real process and a real (pseudo) terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from models import DEMO

from mars_gguf import demo, demo_model

CHAT = [sys.executable, "-m", "mars_gguf.chat"]
GREEDY = ["--demo", "--temp", "0", "-t", "1"]


def chat(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CHAT, *arguments], input=stdin, capture_output=True, text=True)


def ask(modality: str, kind: str) -> demo.Request:
    return next(r for r in demo.requests() if (r.modality, r.kind) == (modality, kind))


def test_one_shot_prints_the_reply_and_nothing_else() -> None:
    done = chat(*GREEDY, "-p", ask("text", "harmful").prompt)
    assert done.returncode == 0
    assert done.stdout.startswith(demo_model.REFUSAL)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_piped_prompt_is_read_from_standard_input() -> None:
    prompt = ask("text", "harmless").prompt
    assert chat(*GREEDY, stdin=prompt).stdout == chat(*GREEDY, "-p", prompt).stdout != ""


def test_json_carries_the_reply_and_what_steering_did() -> None:
    request = ask("image", "harmless")
    images = [f"--image={demo_model.FOLDER / 'demo' / name}" for name in request.images]
    answer: dict[str, Any] = json.loads(
        chat(*GREEDY, "--json", "-p", request.prompt, *images).stdout
    )
    assert answer["reply"]
    assert answer["mars"]["modality"] == "image"
    assert {"t", "z", "gate", "alpha", "layer", "way", "milliseconds"} <= set(answer["mars"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "Hello."], "no model"),
        (["-m", DEMO, "-p", "Hello."], "no vector"),
        (["--demo", "-p", ""], "the prompt is empty"),
        (["-m", "none.gguf", "--vector", str(demo_model.VECTOR), "-p", "x"], "no such file"),
        (["-m", DEMO, "--vector", DEMO, "-p", "x"], "expected at most"),
        (["--demo", "--image", "none.png", "-p", "x"], "none.png: no such file"),
        (["--demo", "--image", DEMO, "-p", "x"], "not a picture"),
        (["-m", DEMO, "--vector", str(demo_model.VECTOR), "--image", "x.png"], "no such file"),
        (["--demo", "-c", "32", "-p", "a " * 400], "exceeds n_ctx"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: list[str], expected: str) -> None:
    done = chat(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*CHAT, *GREEDY], stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True
    )
    os.close(terminal)
    seen = ""

    def read_until(text: str) -> str:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, f"no {text!r} in {seen!r}"
            if select.select([controller], [], [], 1)[0]:
                seen += os.read(controller, 4096).decode()
        before, _, seen = seen.partition(text)
        return before

    def say(text: str) -> None:
        os.write(controller, text.encode() + b"\n")

    read_until("> ")
    say(ask("text", "harmful").prompt)
    assert demo_model.REFUSAL in read_until("\r\n> ")
    say("/why")
    assert "[text: t " in read_until("\r\n> ")
    request = ask("image", "harmful")
    say(f"/image {demo_model.FOLDER / 'demo' / request.images[0]}")
    assert "1 attached" in read_until("\r\n> ")
    say(request.prompt)
    read_until("\r\n> ")
    say("/why")
    assert "[image: t " in read_until("\r\n> ")
    say("/image nothing.png")
    assert "no such file" in read_until("\r\n> ")
    say("/clear")
    read_until("> ")
    os.write(controller, b"\x04")
    assert process.wait(timeout=30) == 0
    os.close(controller)
