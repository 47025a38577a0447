"""Checks every undocumented name of ``llama_cpp.server`` and uvicorn that is used, when this module
is imported."""

from __future__ import annotations

from typing import Any

import uvicorn
from llama_cpp.server.app import prepare_request_resources
from llama_cpp.server.cli import add_args_from_model
from uvicorn.protocols.http.h11_impl import H11Protocol

UVICORN = "0.54.0"  # and what has the same names

# What is extended of uvicorn, and by which of its functions that is called or set.
_EXTENDED: dict[Any, tuple[str, ...]] = {
    H11Protocol.__init__: ("connections", "cycle", "loop", "transport"),
    H11Protocol.handle_events: ("cycle", "on_response_complete"),
    uvicorn.Server.handle_exit: ("should_exit",),
}

if _missing := [
    f"{function.__qualname__}.{name}"
    for function, names in _EXTENDED.items()
    for name in names
    if name not in function.__code__.co_names
]:
    raise ImportError(
        f"uvicorn {uvicorn.__version__} lacks {', '.join(_missing)}; mars-gguf works with "
        f"{UVICORN}: pip install uvicorn=={UVICORN}"
    )

__all__ = ["H11Protocol", "add_args_from_model", "prepare_request_resources"]
