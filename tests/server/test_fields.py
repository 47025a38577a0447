"""The list of fields, held against llama-cpp-python's requests, ours, and the page."""

from __future__ import annotations

import pytest
from llama_cpp.server import types
from pages import ROOT

from mars_gguf.server import request_types
from mars_gguf.server.fields import EVERY, KNOWN, TABLE, Route, names_of

UPSTREAM = {
    "chat": types.CreateChatCompletionRequest,
    "completion": types.CreateCompletionRequest,
    "embedding": types.CreateEmbeddingRequest,
}
OURS = {
    "chat": request_types.ChatRequest,
    "completion": request_types.CompletionRequest,
    "embedding": request_types.EmbeddingRequest,
}


@pytest.mark.parametrize("route", EVERY)
def test_every_field_that_llama_cpp_python_takes_is_in_the_list(route: Route) -> None:
    assert set(UPSTREAM[route].model_fields) <= KNOWN[route]


@pytest.mark.parametrize("route", EVERY)
def test_every_field_that_is_taken_is_one_of_the_request(route: Route) -> None:
    fields = set(OURS[route].model_fields)
    assert names_of(route, taken=True) == fields - names_of(route, taken=False)


def test_the_page_has_the_list() -> None:
    page = (ROOT / "docs" / "SERVER.md").read_text("utf-8")
    section = page.split("## Fields of requests")[1].split("\n## ")[0]
    lines = section.splitlines()
    for row in TABLE:
        names = ", ".join(f"`{name}`" for name in row.names.split())
        routes = "every" if row.routes == EVERY else ", ".join(row.routes)
        if row.taken is not None:
            assert f"| {names} | {routes} | {row.taken} |" in lines
        else:
            assert all(f"`{name}`" in section for name in row.names.split())
    assert sum(line.startswith("| `") for line in lines) == sum(r.taken is not None for r in TABLE)
