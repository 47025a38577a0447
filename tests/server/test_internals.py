"""A version of what the server builds on that lacks a name is refused when it is imported."""

from __future__ import annotations

import importlib
import re

import pytest
import uvicorn
from llama_cpp.server.model import LlamaProxy

from mars_gguf.server import internals


def test_a_version_that_lacks_a_name_is_refused_with_the_one_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(self: object, *args: object) -> None:
        pass

    for owner, name, missing in (
        (uvicorn.Server, "handle_exit", "other.should_exit; mars-gguf works with .* uvicorn=="),
        (LlamaProxy, "load_llama_from_model_settings", "other.Llama,.*llama-cpp-python=="),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            with pytest.raises(ImportError) as refused:
                importlib.reload(internals)
            assert re.search(missing, str(refused.value))
    importlib.reload(internals)
