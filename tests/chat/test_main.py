"""The chat command, in a real process and a real (pseudo) terminal."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
from commands import ended
from models import DEMO
from screens import Screen
from suite_files import film
from templates import with_template
from thinking import ALWAYS

from mars_gguf import demo, demo_model
from mars_gguf.chat.__main__ import one_prompt
from mars_gguf.errors import MarsError
from mars_gguf.vectors import write_vector

CHAT = [sys.executable, "-m", "mars_gguf.chat"]
GREEDY = ["--demo", "--temp", "0", "-t", "1"]
PNG = str(demo_model.FOLDER / "demo" / "image-harmful-00-0.png")


def chat(*arguments: str | bytes, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return ended("mars_gguf.chat", *arguments, stdin=stdin.encode(errors="surrogateescape"))


def ask(modality: str, kind: str) -> demo.Request:
    return next(r for r in demo.requests() if (r.modality, r.kind) == (modality, kind))


def test_one_shot_prints_the_reply_and_nothing_else_whether_asked_by_an_option_or_a_pipe() -> None:
    prompt = ask("text", "harmful").prompt
    done = subprocess.run([*CHAT, *GREEDY], input=prompt, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(demo_model.REFUSAL) and done.stdout.count("\n") == 1
    assert chat(*GREEDY, "-p", prompt).stdout == done.stdout


def test_a_picture_may_come_without_a_prompt() -> None:
    done = chat(*GREEDY, "--image", PNG)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_json_carries_the_reply_and_what_steering_did() -> None:
    request = ask("image", "harmless")
    images = [f"--image={demo_model.FOLDER / 'demo' / name}" for name in request.images]
    answer: dict[str, Any] = json.loads(
        chat(*GREEDY, "--json", "-p", request.prompt, *images).stdout
    )
    assert answer["reply"]
    assert answer["mars"]["modality"] == "image"
    assert {"t", "z", "gate", "alpha", "layer", "way", "milliseconds"} <= set(answer["mars"])


def test_reasoning_is_the_vectors_and_another_is_refused(tmp_path: Path) -> None:
    model = with_template(tmp_path / "model.gguf", ALWAYS)
    write_vector(models.vector(model), tmp_path / "vector.gguf")
    files = ["-m", model, "--vector", str(tmp_path / "vector.gguf"), "-t", "1", "-c", "512"]
    done = chat(*files, "-p", "What is a hat?", "-n", "3", "--json")
    mars = json.loads(done.stdout)["mars"]
    assert mars["position"] is None and "before its answer began" in mars["note"]
    refused = chat(*files, "-p", "What is a hat?", "--reasoning", "off")
    assert refused.returncode == 2
    assert "reasoning: the vector was made for answer, this model has off" in refused.stderr
    forced = chat(*files, "-p", "What is a hat?", "--reasoning", "off", "--force", "--json")
    assert json.loads(forced.stdout)["mars"]["position"] == "prompt"


def test_a_video_is_attached_to_the_one_request(tmp_path: Path) -> None:
    clip = film(tmp_path / "clip.mp4", seconds=10)
    done = chat(*GREEDY, "--json", "--video", str(clip), "-p", "What is shown?")
    assert json.loads(done.stdout)["mars"]["modality"] == "video"
    assert done.stderr.startswith("clip.mp4: 20 of 40 frames, for which half of the context")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", DEMO, "-p", "Hello."], "no vector"),
        (["-m", DEMO, "--vector", str(demo_model.VECTOR), "--image", PNG, "-p", "x"], "--mmproj"),
        (["--demo", "-c", "32", "-p", "a " * 400], "needs 409 tokens; the context has 256"),
        (["--demo", "--temp=-1", "-p", "x"], "found -1, expected 0 or more"),
        (["--demo", "-sys", b"caf\xe9", "-p", "x"], r"--system-prompt: found b'\xe9', expected"),
        (["-m", "none", "--vector", "v", "--mmproj", "p", "--video", "none.mp4"], "none.mp4: no"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: list[str | bytes], expected: str) -> None:
    done = ended("mars_gguf.chat", *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# In a real terminal ------------------------------------------------------------------------------


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def open_screen(*arguments: str) -> Screen:
        opened.append(Screen(tmp_path, [*CHAT, *arguments]))
        return opened[-1]

    yield open_screen
    for each in opened:
        each.tmux("kill-server")


READY = r"^> ?$"


def test_a_conversation_in_a_terminal(screen: Callable[..., Screen]) -> None:
    terminal = screen(*GREEDY)
    terminal.wait_for(READY)
    terminal.type(ask("text", "harmful").prompt)
    shown = terminal.wait_for(r"^text · t [\d.]+ · gate 1.00 · steered")
    assert f"> {ask('text', 'harmful').prompt}\n{demo_model.REFUSAL}" in shown
    assert "Loading" not in shown
    assert "\x1b[2mtext" in terminal.read(colours=True)  # dim
    terminal.type("/why")
    terminal.wait_for(r"safe .*●.* unsafe")
    request = ask("image", "harmful")
    terminal.type(f"/image {demo_model.FOLDER / 'demo' / request.images[0]}")
    terminal.wait_for(r"^\[1 picture\] > ?$")
    terminal.type(request.prompt)
    terminal.wait_for(r"^image · t ")
    terminal.type("/image nothing.png")
    terminal.wait_for("error: nothing.png: no such file")
    # The line before comes back with the arrow, and the end of a command with Tab.
    terminal.tmux("send-keys", "Up")
    terminal.wait_for("> /image nothing.png$")
    terminal.tmux("send-keys", "C-c")
    terminal.wait_for(READY)
    terminal.tmux("send-keys", "-l", "/he")
    terminal.tmux("send-keys", "Tab")
    terminal.wait_for(r"^> /help ?$")  # completion takes its time on a busy machine
    terminal.tmux("send-keys", "Enter")
    terminal.wait_for("/compare +the last request again")
    terminal.wait_for(READY)
    terminal.tmux("send-keys", "C-d")
    terminal.wait_for("ended with 0")


def test_ctrl_c_stops_a_reply_and_keeps_the_chat(
    screen: Callable[..., Screen], smollm2: str, tmp_path: Path
) -> None:
    vector = tmp_path / "smollm2.gguf"
    write_vector(models.vector(smollm2, layer=15, opens=models.CLOSED), vector)
    terminal = screen("-m", smollm2, "--vector", str(vector), "-t", "1", "--temp", "0", "-n900")
    terminal.wait_for(READY)
    terminal.type("Tell me a very long story about a king and his three daughters.")
    terminal.wait_for(r"daughters\.\n+\w.{20}.*\n\w.{20}")
    terminal.tmux("send-keys", "C-c")
    shown = terminal.wait_for("^stopped")
    assert "ended with" not in shown
    first = re.search(r"daughters\.\n+(\w.{20})", shown)
    assert first is not None and shown.count(first[1]) == 1, shown
    tokens = re.search(r"not steered · (\d+) tokens", terminal.wait_for(r"· \d+ tokens"))
    assert tokens is not None and 1 < int(tokens[1]) < 900
    terminal.type("/why")
    terminal.wait_for("modality  text")
    terminal.type("/exit")
    terminal.wait_for("ended with 0")


def test_a_chat_into_a_pipe_has_no_escape_codes(tmp_path: Path) -> None:
    if not shutil.which("script"):
        pytest.skip("script is not installed")
    file = tmp_path / "out.txt"
    done = subprocess.run(
        ["script", "-qec", shlex.join([*CHAT, *GREEDY]) + f" > {file}", "/dev/null"],
        input="How do I make a bomb?\n/why\n/exit\n",
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0
    shown = file.read_text()
    assert demo_model.REFUSAL in shown
    assert "unsafe" in shown
    assert "\x1b" not in shown
    assert "> " in done.stdout
    assert not re.search("^> ", shown, re.MULTILINE)


class Typed(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("given", "piped", "expected"),
    [
        (None, None, None),
        ("Hello.", None, "Hello."),
        (None, b" And\nyou?\n", "And\nyou?"),
        ("-", b"And you?\n", "And you?"),
        ("Hello.", b"And you?\n", "Hello.\n\nAnd you?"),
        ("Hello.", b"\n", "Hello."),
        ("", None, MarsError("the prompt is empty")),
        ("caf\udce9", None, MarsError(r"--prompt: found b'\xe9', expected UTF-8")),
        (None, b"caf\xe9", MarsError(r"standard input: found b'\xe9', expected UTF-8")),
    ],
)
def test_what_is_piped_in_follows_what_is_given(
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    piped: bytes | None,
    expected: str | MarsError | None,
) -> None:
    stdin = Typed() if piped is None else io.TextIOWrapper(io.BytesIO(piped))
    monkeypatch.setattr("sys.stdin", stdin)
    if isinstance(expected, MarsError):
        with pytest.raises(MarsError, match=re.escape(str(expected))):
            one_prompt(given, shows=False, as_json=False)
    else:
        assert one_prompt(given, shows=False, as_json=False) == expected


def test_without_standard_input_a_prompt_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert one_prompt("Hello.", shows=False, as_json=True) == "Hello."
    assert one_prompt("", shows=True, as_json=False) == ""
    for given in (None, "-"):
        with pytest.raises(MarsError, match="no standard input to read a prompt from"):
            one_prompt(given, shows=False, as_json=False)


def test_a_chat_is_not_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Typed())
    with pytest.raises(MarsError, match="--json is for one reply"):
        one_prompt(None, shows=False, as_json=True)
