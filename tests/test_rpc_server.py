"""All layers on an RPC server: every command gives what it gives on the CPU."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import few_prompts, recipe
from models import DEMO, DEMO_MMPROJ
from pages import ROOT
from rpc_servers import Line, free_port, serving, why_not

from mars_gguf import demo
from mars_gguf.demo_model import FOLDER
from mars_gguf.vectors import read_vector

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

HARMFUL = next(r.prompt for r in demo.requests() if (r.modality, r.kind) == ("text", "harmful"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as endpoint:
        yield endpoint


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", command if "." in command else f"mars_gguf.{command}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def asked(*arguments: str) -> dict[str, Any]:
    done = run("chat", "--demo", "-t", "1", "--temp", "0", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    reply: dict[str, Any] = json.loads(done.stdout)
    del reply["mars"]["milliseconds"]
    return reply


@pytest.mark.parametrize("way", ["inline", "cvec"])
@pytest.mark.parametrize("shown", ["text", "image", "video"])
def test_a_chat_is_that_of_the_cpu(server: str, shown: str, way: str) -> None:
    request = next(r for r in demo.requests() if (r.modality, r.kind) == (shown, "harmful"))
    pictures = [["--image", str(FOLDER / "demo" / name)] for name in request.images]
    arguments = ["-p", request.prompt, "--way", way, *(word for p in pictures for word in p)]
    here, there = asked(*arguments), asked(*arguments, "--rpc", server)
    assert here["reply"] == there["reply"]
    assert there["mars"]["way"] == way
    # The CPU's own order of weights rounds otherwise than a server's.
    for number in ("t", "alpha"):
        assert there["mars"][number] == pytest.approx(here["mars"][number], rel=0.01)


def test_there_steering_is_exact_to_the_bit(server: str) -> None:
    done = run("lab.devices", "--rpc", server, "-c", "512")
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, row = done.stdout.splitlines()
    assert f"| RPC0 ({server}) |" in row
    assert row.count("| equal ") == 3


def conversion(folder: Path, name: str, *more: str, **seen: Any) -> list[str]:
    path = recipe(
        folder, name, model={"path": DEMO, **seen}, prompts=few_prompts(folder),
        neutral={"contexts": False, "count": 12, "modalities": ["image"] if seen else ["text"]},
        calibration={"layers": "5-6"},
    )  # fmt: skip
    return ["--recipe", path, "-q", "-t", "1", *more]


def test_a_conversion_is_that_of_the_cpu(server: str, tmp_path: Path) -> None:
    for name, more in (("here.gguf", []), ("there.gguf", ["--rpc", server])):
        done = run("convert", *conversion(tmp_path, name, *more, mmproj=DEMO_MMPROJ))
        assert done.returncode == 0, done.stderr
    here, there = (read_vector(tmp_path / name) for name in ("here.gguf", "there.gguf"))
    assert here.layer == there.layer
    assert here.modalities == there.modalities == ["text", "image"]
    for field in ("safe", "unsafe", "readout"):
        a, b = (getattr(v.geometry, field) for v in (here, there))
        assert np.allclose(a, b, atol=0.03 * np.abs(a).max()), field
    assert here.geometry.thresholds == pytest.approx(there.geometry.thresholds, abs=0.02)


def test_a_conversion_whose_server_goes_away_leaves_no_file_and_goes_on(
    server: str, tmp_path: Path
) -> None:
    with Line(server) as line:
        whole = run("convert", *conversion(tmp_path, "whole.gguf", "--rpc", line.endpoint))
        assert whole.returncode == 0, whole.stderr
    with Line(server, 0.8 * line.carried) as broken:
        ended = run("convert", *conversion(tmp_path, "v.gguf", "--rpc", broken.endpoint))
    assert ended.returncode == 2, ended.stderr
    assert f"error: RPC server ({broken.endpoint}): " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("v.gguf")) and not list(tmp_path.glob("v.md"))
    assert (tmp_path / "v.measured").stat().st_size > 0
    again = run("convert", *conversion(tmp_path, "v.gguf", "--rpc", server))
    assert again.returncode == 0, again.stderr
    a, b = (read_vector(tmp_path / name).geometry for name in ("whole.gguf", "v.gguf"))
    assert np.allclose(a.safe, b.safe, atol=1e-4) and np.allclose(a.unsafe, b.unsafe, atol=1e-4)


def test_a_terminal_shows_again_what_is_typed_when_a_reply_breaks_off(server: str) -> None:
    if not shutil.which("script"):
        pytest.skip("script is not installed")

    def chat(line: Line) -> str:
        words = [sys.executable, "-m", "mars_gguf.chat", "--demo", "-t", "1", "-p", HARMFUL]
        command = f"{shlex.join([*words, '--rpc', line.endpoint])}; echo code $?; stty -a"
        done = subprocess.run(
            ["script", "-qc", command, "/dev/null"], capture_output=True, text=True
        )
        return done.stdout

    with Line(server) as line:
        whole = chat(line)
        assert "I'm sorry" in whole and "code 0" in whole
    with Line(server, line.carried - 1000) as broken:  # at the last tokens
        said = chat(broken)
    assert "code 2" in said and "error: RPC server" in said
    assert re.search(r"(?<!-)\becho\b", said.partition("code 2")[2])
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")


def test_an_rpc_server_that_cannot_listen_says_so(server: str) -> None:
    nowhere = f"192.0.2.1:{free_port()}"
    for endpoint, message in (
        (server, f"error: {server}: cannot listen there. Is the address this machine's"),
        (nowhere, "cannot listen there"),
        ("50052", "RPC server: found '50052', expected HOST:PORT"),
    ):
        done = run("rpc_server", endpoint)
        assert done.returncode == 2
        assert message in done.stderr and "Traceback" not in done.stderr
