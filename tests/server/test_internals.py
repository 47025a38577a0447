"""A version of what the server builds on that lacks a name is refused when it is imported."""

from __future__ import annotations

import importlib

import pytest
import uvicorn

from mars_gguf.server import internals


def test_a_version_that_lacks_a_name_is_refused_with_the_one_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(self: object, *args: object) -> None:
        pass

    with monkeypatch.context() as patch:
        patch.setattr(uvicorn.Server, "handle_exit", other)
        with pytest.raises(
            ImportError, match="other.should_exit; mars-gguf works with .* uvicorn=="
        ):
            importlib.reload(internals)
    importlib.reload(internals)
