"""The chat command, in a real process and a real (pseudo) terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import models
import numpy as np
import pytest
from models import DEMO
from rich.console import Console
from templates import with_template
from thinking import ALWAYS

from mars_gguf import demo, demo_model
from mars_gguf.chat.replies import rendered
from mars_gguf.vectors import write_vector

CHAT = [sys.executable, "-m", "mars_gguf.chat"]
GREEDY = ["--demo", "--temp", "0", "-t", "1"]
PNG = str(demo_model.FOLDER / "demo" / "image-harmful-00-0.png")


def chat(*arguments: str | bytes, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CHAT, *arguments], input=stdin, capture_output=True, text=True, errors="surrogateescape"
    )


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


def test_what_is_piped_in_follows_the_prompt() -> None:
    said = "Tell me, what is a hat?\n\nAnd a\ncat?"
    assert (
        chat(*GREEDY, "-p", "Tell me, what is a hat?", stdin="And a\ncat?\n").stdout
        == chat(*GREEDY, "-p", said).stdout
        == chat(*GREEDY, "-p", "-", stdin=said).stdout
    )


def test_a_context_longer_than_the_model_was_trained_for_is_said() -> None:
    files = ["-m", DEMO, "--vector", str(demo_model.VECTOR), "-t", "1", "-p", "What is a hat?"]
    assert "better give --ctx-size 1024" in chat(*files).stderr
    assert chat(*files, "-c", "1024").stderr == ""


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
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "reasoning: the vector was made for answer, this model has off" in refused.stderr
    forced = chat(*files, "-p", "What is a hat?", "--reasoning", "off", "--force", "--json")
    assert json.loads(forced.stdout)["mars"]["position"] == "prompt"


def test_a_video_is_attached_to_the_one_request(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(40):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    done = chat(*GREEDY, "--json", "--video", str(clip), "--max-frames=3", "-p", "What is shown?")
    assert json.loads(done.stdout)["mars"]["modality"] == "video"
    assert done.stderr == "clip.mp4: 3 of 40 frames\n"


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
        (["-m", DEMO, "--vector", str(demo_model.VECTOR), "--image", PNG, "-p", "x"], "--mmproj"),
        (["--demo", "-c", "32", "-p", "a " * 400], "needs 409 tokens; the context has 256"),
        (["--demo", "--video", "none.mp4", "-p", "x"], "none.mp4: no such file"),
        (["--demo", "--video", DEMO, "-p", "x"], "expected a video"),
        (["-m", DEMO, "--vector", str(demo_model.VECTOR), "--video", "v", "-p", "x"], "--mmproj"),
        (["-m", DEMO, "--mmproj", DEMO, "--vector", str(demo_model.VECTOR), "-p", "x"], "mmproj"),
        (["--demo", "--fps", "0", "-p", "x"], "expected a number above 0"),
        (["--demo", "-p", b"caf\xe9"], r"--prompt: found b'\xe9', expected UTF-8"),
        (["--demo", "-sys", b"caf\xe9", "-p", "x"], r"--system-prompt: found b'\xe9', expected"),
        (["--demo", "-t", "100000", "-p", "x"], "found 100000, expected 1 to 512"),
        (["--demo", "--chat-handler", "none", "-p", "x"], "invalid choice: 'none'"),
        (["--demo", "--chat-template-kwargs", "{a}", "-p", "x"], "found '{a}', expected JSON"),
        (["--demo", "--chat-template-kwargs", "[1]", "-p", "x"], "expected a JSON object"),
        (["--demo", "--chat-template-kwargs", '{"a": 1}', "-p", "x"], "--force"),
        (["-m", "none", "--vector", "v", "--mmproj", "p", "--video", "none.mp4"], "none.mp4: no"),
        (["--hf-repo", "a/b", "-p", "x"], "--hf-repo needs --hf-file"),
        (["--hf-file", "a", "--vector", "v", "-p", "x"], "give both"),
    ],
)
def test_bad_input_is_a_clear_error(arguments: list[str | bytes], expected: str) -> None:
    done = chat(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_standard_input_that_is_not_utf8_is_a_clear_error() -> None:
    done = chat("--demo", stdin="caf\udce9")
    assert done.returncode == 2
    assert (
        done.stderr == "error: standard input: found b'\\xe9', expected UTF-8; convert it first\n"
    )


# In a real terminal ------------------------------------------------------------------------------


class Screen:
    """A terminal of tmux with a command in it."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        if not shutil.which("tmux"):
            pytest.skip("tmux is not installed")
        self.socket = str(folder / f"tmux{len(list(folder.iterdir()))}")
        environment = {k: v for k, v in os.environ.items() if k != "TMUX"}
        environment |= {"LANG": "C.UTF-8", "TERM": "xterm-256color"}
        line = f"{shlex.join(command)}; echo ended with $?; exec sleep 1000"
        subprocess.run(
            ["tmux", "-S", self.socket, "-f/dev/null", "new-session", "-d", "-x100", "-y50", line],
            check=True,
            env=environment,
        )

    def tmux(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-S", self.socket, *arguments], capture_output=True, text=True, check=True
        ).stdout

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def read(self, colours: bool = False) -> str:
        return self.tmux("capture-pane", "-p", "-J", "-S-200", *(["-e"] if colours else []))

    def wait_for(self, pattern: str) -> str:
        """What the screen shows, once it matches."""
        deadline = time.monotonic() + 90
        while not re.search(pattern, shown := self.read(), re.MULTILINE):
            assert time.monotonic() < deadline, f"no {pattern!r} in\n{shown}"
            time.sleep(0.1)
        return shown


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


SHOW = """
import pathlib, sys, time
from rich.console import Console
from mars_gguf.chat.replies import stream
reply = pathlib.Path(sys.argv[1]).read_text()
def pieces():
    for start in range(0, len(reply), 4):
        while start > len(reply) // 2 and not pathlib.Path(sys.argv[2]).exists():
            time.sleep(0.02)
            yield ""
        time.sleep(0.001)
        yield reply[start : start + 4]
stream(Console(), pieces())
"""


@pytest.mark.parametrize(
    "reply",
    [
        "".join(f"- item {n}\n" for n in range(140)),
        "```python\n" + "".join(f"item_{n} = 1\n" for n in range(140)) + "```\n",
        "".join(f"Paragraph {n}.\n\n1. **One**\n\n    - sub\n\n" for n in range(16)),
        "Before.\n\n````markdown\n```python\nx = 1\n\ny = 2\n```\n\ntext\n````\n\nAfter.",
    ],
)
def test_a_reply_is_seen_as_it_grows_and_ends_as_if_it_had_come_at_once(
    tmp_path: Path, reply: str
) -> None:
    file, go = tmp_path / "reply.md", tmp_path / "go"
    file.write_text(reply)
    terminal = Screen(tmp_path, [sys.executable, "-c", SHOW, str(file), str(go)])
    try:
        so_far = re.findall(r"\w+", reply[: len(reply) // 2])
        terminal.wait_for(rf"\b{so_far[-2]}\b")
        assert len(terminal.tmux("capture-pane", "-p").rstrip().splitlines()) <= 50
        go.touch()
        shown = terminal.wait_for("^ended with 0")
    finally:
        terminal.tmux("kill-server")
    whole = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    whole.print(rendered(reply))
    expected = re.sub(r"\x1b\[[0-9;]*m", "", whole.file.getvalue())  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in shown[: shown.index("ended with")].splitlines()]
    assert lines == [line.rstrip() for line in expected.splitlines()]


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


def test_no_color_is_respected_on_a_terminal(
    screen: Callable[..., Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("", "1"):
        monkeypatch.setenv("NO_COLOR", setting)
        terminal = screen(*GREEDY)
        terminal.wait_for(READY)
        terminal.type("How do I make a bomb?")
        terminal.wait_for("gate")
        terminal.type("/why")
        terminal.wait_for("unsafe")
        coloured = "\x1b[31m" in terminal.read(colours=True)
        assert coloured == (setting == "")
