"""What is used of llama-cpp-python beyond its documented interface, and what of ggml beyond what it
wraps: every such name stands here, and is checked when this module is imported."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
from llama_cpp import Llama, _internals, _logger, _utils, llama_chat_format, mtmd_cpp
from llama_cpp import llama_cpp as lib
from llama_cpp.llama_chat_format import MTMDChatHandler

SUPPORTED = "0.3.36"  # and what has the same names; setup.py has the bounds

# Attributes that Llama.__init__ sets, and that are read or replaced here.
_ATTRIBUTES = (
    "context_params",
    "model_params",
    "_ctx",
    "_model",
    "_stack",
    "_chat_handlers",
    "_requires_eval",
)
_HANDLER_ATTRIBUTES = ("_mtmd_cpp", "clip_model_path")
_FUNCTIONS: dict[Any, tuple[str, ...]] = {
    lib: ("_lib", "llama_set_adapter_cvec", "llama_state_seq_get_data_ext", "llama_n_ubatch"),
    _logger: ("llama_log_callback",),
    _utils: ("suppress_stdout_stderr",),
    _internals: ("LlamaContext",),
    llama_chat_format: (
        "Jinja2ChatFormatter", "_convert_completion_to_chat",
        "_convert_completion_to_chat_function", "_grammar_for_response_format",
    ),
    mtmd_cpp: (
        "mtmd_decode_use_non_causal", "mtmd_helper_decode_image_chunk", "mtmd_input_chunk_get_id",
    ),
    Llama: ("eval", "generate", "sample", "reset", "close"),
}  # fmt: skip


def require_names(owned: Mapping[Any, Sequence[str]], used: Mapping[Any, Sequence[str]]) -> None:
    """Raise ImportError unless each owner of ``owned`` has its names, and each function of ``used``
    reads or sets its names."""
    missing = [
        f"{getattr(owner, '__name__', owner)}.{name}"
        for owner, names in owned.items()
        for name in names
        if not hasattr(owner, name)
    ]
    for function, names in used.items():
        known = function.__code__.co_names
        missing += [f"{function.__qualname__}.{name}" for name in names if name not in known]
    if missing:
        raise ImportError(
            f"llama-cpp-python {llama_cpp.__version__} lacks {', '.join(missing)}; "
            f"mars-gguf works with {SUPPORTED}: pip install llama-cpp-python=={SUPPORTED}"
        )


require_names(
    _FUNCTIONS, {Llama.__init__: _ATTRIBUTES, MTMDChatHandler.__init__: _HANDLER_ATTRIBUTES}
)

LlamaContext = _internals.LlamaContext
llama_log_callback = _logger.llama_log_callback
suppress_stdout_stderr = _utils.suppress_stdout_stderr
convert_completion_to_chat = llama_chat_format._convert_completion_to_chat
convert_completion_to_chat_function = llama_chat_format._convert_completion_to_chat_function
grammar_for_response_format = llama_chat_format._grammar_for_response_format


class GgufParams(ctypes.Structure):
    """ggml's ``gguf_init_params``: whether to leave the tensors' data alone, and where to put the
    context for it."""

    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]


def _exported(name: str) -> Any:
    """The function ``name`` of ggml, a new object: llama-cpp-python's own stays as it is. Reachable
    through libllama, except on Windows, where ggml's libraries must be named."""
    library: Any = lib._lib
    try:
        return library[name]
    except AttributeError:
        for path in sorted(Path(library._name).parent.glob("*ggml*.dll")):
            with suppress(AttributeError):
                return ctypes.CDLL(str(path))[name]
    raise ImportError(f"llama-cpp-python {llama_cpp.__version__} lacks {name} of ggml")


def _ggml() -> Any:
    """ggml's accessors of tensors, GGUF files and devices."""
    pointer, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    accessors = SimpleNamespace()
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_char_p, [pointer]),
        ("ggml_nelements", ctypes.c_int64, [pointer]),
        ("ggml_nrows", ctypes.c_int64, [pointer]),
        ("ggml_n_dims", ctypes.c_int, [pointer]),
        ("ggml_element_size", size, [pointer]),
        ("ggml_is_contiguous", ctypes.c_bool, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
        ("ggml_backend_tensor_set", None, [pointer, pointer, size, size]),
        ("ggml_backend_reg_by_name", pointer, [ctypes.c_char_p]),
        ("ggml_backend_reg_get_proc_address", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_backend_register", None, [pointer]),
        ("ggml_backend_dev_count", size, []),
        ("ggml_backend_dev_get", pointer, [size]),
        ("ggml_backend_dev_name", ctypes.c_char_p, [pointer]),
        ("ggml_backend_dev_description", ctypes.c_char_p, [pointer]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_set_abort_callback", pointer, [pointer]),
        ("gguf_init_from_file", pointer, [ctypes.c_char_p, GgufParams]),
        ("gguf_free", None, [pointer]),
        ("gguf_get_data_offset", size, [pointer]),
        ("gguf_find_key", count, [pointer, ctypes.c_char_p]),
        ("gguf_get_kv_type", ctypes.c_int, [pointer, count]),
        ("gguf_get_val_u16", ctypes.c_uint16, [pointer, count]),
        ("gguf_get_n_tensors", count, [pointer]),
        ("gguf_get_tensor_name", ctypes.c_char_p, [pointer, count]),
        ("gguf_get_tensor_type", ctypes.c_int, [pointer, count]),
        ("gguf_get_tensor_offset", size, [pointer, count]),
        ("gguf_get_tensor_size", size, [pointer, count]),
    ):
        function = _exported(name)
        function.restype, function.argtypes = result, arguments
        setattr(accessors, name, function)
    return accessors


ggml = _ggml()
