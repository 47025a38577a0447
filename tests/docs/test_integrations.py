"""What people run in front of the server: the configuration that is shipped for it is one that the
server takes, and its guardrail lets nothing pass that was not judged."""

from __future__ import annotations

import asyncio
import runpy
import shlex
import sys
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from fastapi import HTTPException
from pages import ROOT

from mars_gguf.server.app import router
from mars_gguf.server.settings import ServerSettings, parser

FOLDER = ROOT / "examples/integrations"
PAGE = (ROOT / "docs/INTEGRATIONS.md").read_text("utf-8")


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


@pytest.fixture
def guardrail(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LiteLLM's guardrail, without LiteLLM, which pins other versions than the tests have."""
    base = ModuleType("litellm.integrations.custom_guardrail")
    base.CustomGuardrail = object  # type: ignore[attr-defined]
    for name in ("litellm", "litellm.integrations", base.__name__):
        monkeypatch.setitem(sys.modules, name, base)
    return runpy.run_path(str(FOLDER / "mars_guardrail.py"))["Judged"]()


JUDGED, UNJUDGED = SimpleNamespace(mars={"gate": 1.0, "alpha": 2.0}), SimpleNamespace()


def test_the_guardrail_lets_no_reply_pass_that_was_not_judged(guardrail: Any) -> None:
    hook = guardrail.async_post_call_success_hook
    assert asyncio.run(hook({"model": "demo"}, None, JUDGED)) is JUDGED
    with pytest.raises(HTTPException) as refused:
        asyncio.run(hook({"model": "plain"}, None, UNJUDGED))
    assert refused.value.status_code == 502
    assert "does not say that it was judged" in refused.value.detail


def test_the_guardrail_reads_streams_too(guardrail: Any) -> None:
    async def read(*chunks: Any) -> list[Any]:
        async def coming() -> AsyncIterator[Any]:
            for chunk in chunks:
                yield chunk

        hook = guardrail.async_post_call_streaming_iterator_hook
        return [chunk async for chunk in hook(None, coming(), {"model": "demo"})]

    assert asyncio.run(read(UNJUDGED, JUDGED)) == [UNJUDGED, JUDGED]  # the last one tells
    with pytest.raises(ValueError, match="does not say that it was judged"):
        asyncio.run(read(UNJUDGED, UNJUDGED))
