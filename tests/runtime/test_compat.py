"""What is used of llama-cpp-python's insides is checked when it is imported."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from llama_cpp import Llama, _internals, llama_chat_format, mtmd_cpp

from mars_gguf.runtime import compat


@pytest.fixture(autouse=True)
def imported_again() -> Any:
    yield
    importlib.reload(compat)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (_internals, "LlamaContext"),
        (llama_chat_format, "_convert_completion_to_chat"),
        (mtmd_cpp, "mtmd_helper_decode_image_chunk"),
        (Llama, "sample"),
    ],
)
def test_a_name_that_is_missing_is_said_with_what_is_supported(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(
        ImportError, match=rf"lacks .*\.{name}; .*llama-cpp-python=={compat.SUPPORTED}"
    ):
        importlib.reload(compat)
    monkeypatch.undo()


def test_attributes_that_are_set_when_a_model_is_loaded_are_looked_for_in_what_sets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(self: Any) -> None:
        self._ctx = self._model = self._stack = None

    monkeypatch.setattr(Llama, "__init__", init)
    with pytest.raises(ImportError, match=r"lacks .*init\.context_params, .*init\.model_params"):
        importlib.reload(compat)
    monkeypatch.undo()
