"""What is used of ``llama_cpp.server``, which has no documented interface for Python: every name
stands here, and is checked when this module is imported."""

from __future__ import annotations

from typing import Any

import uvicorn
from llama_cpp import LlamaGrammar
from llama_cpp.server import app, cli
from llama_cpp.server.errors import RouteErrorHandler
from llama_cpp.server.model import LlamaProxy
from uvicorn.protocols.http.h11_impl import H11Protocol

from mars_gguf.runtime.compat import require_names

UVICORN = "0.54.0"  # and what has the same names

_NAMES: dict[Any, tuple[str, ...]] = {
    app: (
        "authenticate", "create_app", "create_chat_completion", "create_completion",
        "get_llama_proxy", "llama_outer_lock", "prepare_request_resources", "_llama_proxy",
    ),
    RouteErrorHandler: ("get_route_handler",),
    cli: ("add_args_from_model",),
}  # fmt: skip

# Names by functions that read or set them. Some are replaced here, which would do nothing if those
# functions did not read them.
_USED: dict[Any, tuple[str, ...]] = {
    app.set_llama_proxy: ("LlamaProxy", "_llama_proxy"),
    app.create_app: ("set_llama_proxy", "RequestIdPlugin"),
    app.create_chat_completion: ("get_event_publisher", "run_in_threadpool"),
    app.create_completion: ("get_event_publisher", "run_in_threadpool"),
    LlamaProxy.__init__: (
        "_model_settings_dict", "_default_model_settings", "_current_model_alias",
        "load_llama_from_model_settings",
    ),
    LlamaProxy.load_llama_from_model_settings: (
        "Llama", "chat_format", "clip_model_path", "chat_template_kwargs",
    ),
    LlamaGrammar.__init__: ("_grammar",),
}  # fmt: skip

require_names(_NAMES, _USED)

# What is extended of uvicorn, and by which of its functions that is called or set.
_EXTENDED: dict[Any, tuple[str, ...]] = {
    H11Protocol.__init__: ("connections", "cycle", "loop", "transport"),
    H11Protocol.handle_events: ("cycle", "on_response_complete"),
    uvicorn.Server.handle_exit: ("should_exit",),
}


def _require_uvicorn() -> None:
    missing = [
        f"{function.__qualname__}.{name}"
        for function, names in _EXTENDED.items()
        for name in names
        if name not in function.__code__.co_names
    ]
    if missing:
        raise ImportError(
            f"uvicorn {uvicorn.__version__} lacks {', '.join(missing)}; mars-gguf works with "
            f"{UVICORN}: pip install uvicorn=={UVICORN}"
        )


_require_uvicorn()

__all__ = ["H11Protocol", "LlamaProxy", "RouteErrorHandler", "app", "cli"]
