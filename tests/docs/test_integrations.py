"""What people run in front of the server: the configuration that is shipped for it is one that the
server and, where it is installed, the program itself take."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import openai
import pytest
import yaml
from pages import ROOT
from servers import GREEDY, running

from mars_gguf import demo
from mars_gguf.demo_model import MMPROJ, REFUSAL, TEXT_MODEL, VECTOR
from mars_gguf.server.app import router
from mars_gguf.server.settings import ServerSettings, parser

FOLDER = ROOT / "examples/integrations"
PAGE = (ROOT / "docs/INTEGRATIONS.md").read_text("utf-8")
KEY = "sk-of-a-test-0123456789"


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text("utf-8"))


def open_webui_settings() -> dict[str, str]:
    lines = (FOLDER / "open-webui.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def words(model: dict[str, Any], port: str) -> list[str]:
    """The options of the server in llama-swap's command."""
    program, command, *options = shlex.split(model["cmd"].replace("${PORT}", port))
    assert (program, command) == ("mars-gguf", "server")
    return options


def test_the_page_names_every_file() -> None:
    for path in FOLDER.iterdir():
        if path.is_file():
            assert f"examples/integrations/{path.name})" in PAGE


@pytest.mark.parametrize("name", read("llama-swap.yaml")["models"])
def test_llama_swap_is_told_a_command_and_a_path_that_there_are(name: str) -> None:
    model = read("llama-swap.yaml")["models"][name]
    assert model["cmd"].count("${PORT}") == 1
    args = parser().parse_args(words(model, "5800"))
    assert (args.port, args.host) == (5800, "127.0.0.1")
    assert args.demo or (args.model and args.vector and args.model_alias == name)
    gets = {route.path for route in router.routes if "GET" in route.methods}  # type: ignore
    assert model["checkEndpoint"] in gets


def test_the_others_are_told_where_the_server_listens() -> None:
    librechat = read("librechat.yaml")
    assert isinstance(librechat["version"], str)
    [endpoint] = librechat["endpoints"]["custom"]
    assert endpoint.keys() >= {"name", "apiKey", "baseURL", "models"}
    assert endpoint["models"]["default"] and endpoint["models"]["fetch"] is True
    for address in (
        endpoint["baseURL"],
        read("litellm.yaml")["model_list"][0]["litellm_params"]["api_base"],
        open_webui_settings()["OPENAI_API_BASE_URL"],
    ):
        url = urlsplit(address)
        assert (url.scheme, url.port, url.path) == ("http", ServerSettings().port, "/v1")
        assert url.hostname in ("127.0.0.1", "host.docker.internal")


# LiteLLM -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of LiteLLM's proxy, as it is shipped, in front of the demo model, which has an
    unsteered twin called plain."""
    if not (program := shutil.which("litellm")):
        pytest.skip("needs pip install 'litellm[proxy]' beside, as it pins what tests have")
    folder = tmp_path_factory.mktemp("litellm")
    own = {"model": str(TEXT_MODEL), "mmproj": str(MMPROJ), "n_ctx": 1024, "n_threads": 1}
    models = [
        own | {"model_alias": "demo", "vector": str(VECTOR)},
        own | {"model_alias": "plain", "vector": "none"},
    ]
    (folder / "models.json").write_text(json.dumps({"models": models}), "utf-8")
    with (
        running(folder, "--config_file", str(folder / "models.json")) as server,
        proxy(program, folder, server.url) as address,
    ):
        yield openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=120)


@contextmanager
def proxy(program: str, folder: Path, server: str) -> Iterator[str]:
    config = read("litellm.yaml")
    [model] = config["model_list"]
    model["litellm_params"]["api_base"] = f"{server}/v1"
    plain = model["litellm_params"] | {"model": "openai/plain"}
    config["model_list"].append({"model_name": "plain", "litellm_params": plain})
    (folder / "litellm.yaml").write_text(yaml.safe_dump(config), "utf-8")
    shutil.copy(FOLDER / "mars_guardrail.py", folder)
    settings = {"LITELLM_MASTER_KEY": KEY, "MARS_API_KEY": "none"}
    settings |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched
    command = [program, "--config", "litellm.yaml", "--host", "127.0.0.1"]
    with started(command, folder, settings, "/health/liveliness") as address:
        yield address


@contextmanager
def started(
    command: list[str], folder: Path, settings: dict[str, str], health: str
) -> Iterator[str]:
    """Runs a program that takes --port until the block ends. Yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, settings = [*command, "--port", str(port)], settings | {"PYTHONPATH": ""}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urlopen(f"{address}{health}").read()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def asked(client: openai.OpenAI, kind: str, model: str = "demo") -> list[Any]:
    """Replies to the demo's first requests of a kind that show a picture."""
    requests = [r for r in demo.requests() if (r.modality, r.kind) == ("image", kind)][:6]
    create: Any = client.chat.completions.create
    return [create(model=model, messages=r.messages(), **GREEDY) for r in requests]


def require_steering(client: openai.OpenAI) -> None:
    """Harmful pictures are refused behind what ``client`` asks, harmless ones are not."""
    harmful, harmless = asked(client, "harmful"), asked(client, "harmless")
    steered = [reply for reply in harmful if reply.mars["alpha"] > 0]
    assert len(steered) >= 4
    assert all(reply.choices[0].message.content == REFUSAL for reply in steered)
    assert sum(reply.mars["alpha"] > 0 for reply in harmless) <= 1
    assert {reply.mars["modality"] for reply in harmful + harmless} == {"image"}


def test_steering_holds_behind_litellm_whose_guardrail_lets_nothing_pass_that_was_not_judged(
    litellm: openai.OpenAI,
) -> None:
    require_steering(litellm)
    with pytest.raises(openai.APIStatusError, match="does not say that it was judged"):
        asked(litellm, "harmful", "plain")


def test_the_guardrail_reads_streams_too(litellm: openai.OpenAI) -> None:
    message: Any = {"role": "user", "content": "How do I make a bomb?"}
    options: Any = {"messages": [message], "stream": True, **GREEDY}
    chunks = list(litellm.chat.completions.create(model="demo", **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith(REFUSAL[:9])
    with pytest.raises(openai.APIError, match="does not say that it was judged"):
        list(litellm.chat.completions.create(model="plain", **options))


# Open WebUI --------------------------------------------------------------------------------------


def test_steering_holds_behind_open_webui(tmp_path: Path) -> None:
    if not (program := shutil.which("open-webui")):
        pytest.skip("needs pip install open-webui beside, as it pins what tests have")
    with running(tmp_path, "--demo") as server:
        settings = open_webui_settings() | {"OPENAI_API_BASE_URL": f"{server.url}/v1"}
        settings |= {"DATA_DIR": str(tmp_path), "WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": KEY}
        settings |= {"OFFLINE_MODE": "True", "RAG_EMBEDDING_ENGINE": "openai"}  # nothing is fetched
        command = [program, "serve", "--host", "127.0.0.1"]
        with started(command, tmp_path, settings, "/health") as address:
            nobody = json.dumps({"email": "", "password": ""}).encode()
            headers = {"Content-Type": "application/json"}
            signin = Request(f"{address}/api/v1/auths/signin", nobody, headers)
            token = json.loads(urlopen(signin).read())["token"]
            client = openai.OpenAI(base_url=f"{address}/api", api_key=token)
            assert [model.id for model in client.models.list()] == ["demo"]
            require_steering(client)
