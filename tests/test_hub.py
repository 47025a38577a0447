"""Models from a hub: the real client of huggingface_hub, spoken to by a small hub on loopback (the
real one cannot be reached from everywhere that these tests run)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mars_gguf import demo_model
from mars_gguf.vectors import read_vector

COMMIT = "0" * 40
FILES: dict[str, Path | bytes] = {
    "README.md": b"# A model",
    "model-Q4_K_M.gguf": demo_model.TEXT_MODEL,
    "model-Q8_0.gguf": b"GGUF but not really",
    "mmproj-model-f16.gguf": demo_model.MMPROJ,
    "mmproj-model-bf16.gguf": b"GGUF but not really",
}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/model/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content(name)), "oid": COMMIT}
                for name in FILES
            ]
            self.answer(json.dumps(entries).encode(), "application/json")
        elif path == "/api/models/org/model":
            names = [{"rfilename": name} for name in FILES]
            body = {"id": "org/model", "sha": COMMIT, "siblings": names}
            self.answer(json.dumps(body).encode(), "application/json")
        elif path.startswith("/org/model/resolve/") and path.split("/")[-1] in FILES:
            self.answer(content(path.split("/")[-1]), "application/octet-stream")
        else:
            self.send_error(404)

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def content(name: str) -> bytes:
    file = FILES[name]
    return file if isinstance(file, bytes) else file.read_bytes()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that knows a hub with one repository, org/model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "NO_PROXY": "127.0.0.1",
    }
    server.shutdown()


@pytest.fixture
def chat(hub: dict[str, str]) -> Run:
    """Runs the chat command with that hub."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        vector = ["--vector", str(demo_model.VECTOR)] if "--vector" not in arguments else []
        command = [sys.executable, "-m", "mars_gguf.chat", "-c", "1024", "-t1", "--temp", "0"]
        return subprocess.run(
            [*command, *vector, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=hub | settings,
        )

    return run


PICTURE = f"--image={demo_model.FOLDER / 'demo' / 'image-harmful-00-0.png'}"


def test_a_model_comes_from_the_hub_with_its_mmproj(chat: Run) -> None:
    done = chat("--hf-repo", "org/model", "--hf-file", "*Q4_K_M.gguf", PICTURE, "-p", "What?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_what_was_downloaded_needs_no_hub(chat: Run) -> None:
    asked = ["--hf-repo", "org/model", "--hf-file", "*Q4_K_M.gguf", PICTURE, "-p", "What?"]
    unknown = chat(*asked, HF_HUB_OFFLINE="1")
    assert unknown.returncode == 2
    assert "org/model: cannot be downloaded" in unknown.stderr
    online = chat(*asked)
    for name in ("*Q4_K_M.gguf", "model-Q4_K_M.gguf"):
        asked[3] = name
        offline = chat(*asked, HF_HUB_OFFLINE="1")
        assert (offline.returncode, offline.stdout) == (0, online.stdout), offline.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-hff", "*.gguf"], "2 files match"),
        (["-hff", "*Q2_K.gguf"], "0 files match '*Q2_K.gguf', expected one of: model-Q4_K_M.gguf"),
        (["-hff", "model-Q8_0.gguf"], "could not load"),
        (
            ["-hff", "*Q4_K_M.gguf", "--mmproj", "*mmproj*bf16.gguf"],
            "could not load this as the mmproj",
        ),
        (["-hff", "*Q4_K_M.gguf", "--no-mmproj", PICTURE], "--mmproj"),
    ],
)
def test_what_the_hub_does_not_have_is_a_clear_error(
    chat: Run, arguments: list[str], said: str
) -> None:
    done = chat("--hf-repo", "org/model", *arguments, "-p", "What?")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_repository_that_is_not_there_is_a_clear_error(chat: Run) -> None:
    done = chat("--hf-repo", "org/other", "--hf-file", "*.gguf", "-p", "What?")
    assert done.returncode == 2
    assert "org/other: cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_the_hub_is_converted_with_its_mmproj(
    hub: dict[str, str], tmp_path: Path
) -> None:
    folder, output = demo_model.FOLDER, tmp_path / "v.gguf"
    sets = [f"--{name}={folder / name}.jsonl" for name in ("harmful", "harmless")]
    options = ["--probes", "16", "--image-size", "32", "-t", "1", "-q", "--no-plot", *sets]
    named = ["-hfr", "org/model", "-hff", "*Q4_K_M.gguf", "-o", str(output)]
    command = [sys.executable, "-m", "mars_gguf.convert", *named, *options]
    subprocess.run(command, check=True, env=hub, cwd=tmp_path)
    assert read_vector(output).modalities == ["text", "image", "video"]
