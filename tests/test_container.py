"""What can be told of the image without a container engine, which is not to be had here: its server
is started as it starts it, and asked as it is asked whether it is well."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from servers import ONE_THREAD, running

from mars_gguf.__main__ import parser
from mars_gguf.runtime.compat import SUPPORTED
from mars_gguf.server.settings import Settings, read_settings

yaml = pytest.importorskip("yaml", reason="needs pip install 'mars-gguf[server]'")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
KEY, MODELS = "a-key", {"MODEL": "model.gguf", "MMPROJ": "mmproj.gguf", "VECTOR": "vector.gguf"}


def instructions(name: str, text: str = DOCKERFILE) -> list[str]:
    return [line.strip() for line in re.findall(rf"^ *{name} (.*)", text, re.MULTILINE)]


LAST_STAGE = DOCKERFILE.rpartition("\nFROM ")[2]
IMAGE = dict(
    word.split("=", 1) for line in instructions("ENV", LAST_STAGE) for word in shlex.split(line)
)


@pytest.fixture
def compose() -> dict[str, Any]:
    """The services, where the variables are set that have to be."""
    text = (ROOT / "compose.yaml").read_text("utf-8")
    given = {"API_KEY": KEY, **MODELS}

    def value(found: re.Match[str]) -> str:
        name, _, default = found[1].partition(":")
        return given.get(name, default.removeprefix("-"))

    services: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{([^}]*)\}", value, text))["services"]
    return services


def test_the_command_of_the_image_is_the_server_with_the_settings_that_compose_gives(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = [*json.loads(instructions("ENTRYPOINT")[-1]), *json.loads(instructions("CMD")[-1])]
    assert command[0] == "mars-gguf"
    asked = parser().parse_args(command[1:])
    assert (asked.command, asked.arguments) == ("server", [])
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    given = {
        name: text for name, text in compose["mars"]["environment"].items() if text is not None
    }
    for name, text in (IMAGE | given).items():
        monkeypatch.setenv(name, text)
    monkeypatch.chdir(tmp_path)
    for name in MODELS.values():
        Path(name).touch()
    server, (model,) = read_settings([])
    assert (server.host, server.api_key, model.n_ctx) == ("0.0.0.0", KEY, 4096)
    assert (model.model, model.clip_model_path, model.vector) == tuple(MODELS.values())
    assert model.hf_model_repo_id is None


def test_ports_and_folders_agree(compose: dict[str, Any]) -> None:
    mars, webui = compose["mars"], compose["webui"]
    port = IMAGE["PORT"]
    assert instructions("EXPOSE") == [port]
    assert mars["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert webui["environment"]["OPENAI_API_BASE_URL"] == f"http://mars:{port}/v1"
    assert webui["environment"]["OPENAI_API_KEY"] == mars["environment"]["API_KEY"] == KEY
    assert instructions("WORKDIR") == ["/models"] and "./models:/models:ro" in mars["volumes"]
    assert json.loads(instructions("VOLUME")[0]) == ["/cache"] and "cache:/cache" in mars["volumes"]
    assert IMAGE["HF_HOME"].startswith("/cache/")


def test_the_image_does_not_run_as_root_and_its_stages_are_there() -> None:
    assert instructions("USER", LAST_STAGE) == ["10001:10001"]
    assert re.search(r"^USER", LAST_STAGE, re.MULTILINE)
    stages = {line.rpartition(" AS ")[2] for line in instructions("FROM") if " AS " in line}
    for device in ("cpu", "cuda"):
        assert {f"build-{device}", f"base-{device}"} <= stages
    override = yaml.safe_load((ROOT / "compose.cuda.yaml").read_text("utf-8"))["services"]["mars"]
    assert override["build"]["args"] == {"DEVICE": "cuda"}


def test_what_is_copied_is_there_and_not_ignored_and_installs_what_is_supported() -> None:
    ignored, *lines = [
        line
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if not line.startswith("#")
    ]
    assert ignored == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert f'"llama-cpp-python[server]{SUPPORTED}"' in DOCKERFILE


def test_the_health_check_tells_a_server_that_answers_from_one_that_does_not(
    tmp_path: Path,
) -> None:
    check = json.loads(instructions("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert check[0] == "python3"

    def healthy(port: int, **key: str) -> bool:
        environment = os.environ | {"PORT": str(port), **key}
        command = [sys.executable, *check[1:]]
        return subprocess.run(command, env=environment, capture_output=True).returncode == 0

    with running(tmp_path, "--demo", *ONE_THREAD, "--api_key", KEY, api_key=KEY) as server:
        assert healthy(server.port, API_KEY=KEY)
        assert not healthy(server.port, API_KEY="another")
    assert not healthy(server.port, API_KEY=KEY)


def test_hadolint_and_the_schemas_of_compose_files_and_workflows_find_nothing() -> None:
    for tool, *arguments in (
        ["hadolint", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec",
         "compose.yaml", "compose.cuda.yaml"],
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows",
         ".github/workflows/ci.yml"],
    ):  # fmt: skip
        program = shutil.which(
            tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        )
        if program is None:
            pytest.skip(f"{tool} is not installed")
        done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
