"""Lists the names of llama-cpp-python and ggml that are used here, the undocumented ones above all,
and checks them before anything else of the runtime is imported."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
from llama_cpp import (
    Llama,
    LlamaGrammar,
    _internals,
    _logger,
    _utils,
    llama_chat_format,
    llama_grammar,
    mtmd_cpp,
)
from llama_cpp import llama_cpp as lib

SUPPORTED = ">=0.3.36,<0.4"  # as in setup.py: the first that has all of this
TESTED = "0.3.36"

NAMES: dict[Any, tuple[str, ...]] = {
    lib: (
        "LLAMA_FLASH_ATTN_TYPE_DISABLED", "LLAMA_FLASH_ATTN_TYPE_ENABLED",
        "LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY", "LLAMA_TOKEN_ATTR_CONTROL",
        "LLAMA_TOKEN_ATTR_UNKNOWN", "LLAMA_TOKEN_ATTR_UNUSED", "LLAMA_TOKEN_ATTR_USER_DEFINED",
        "LLAMA_VOCAB_TYPE_BPE", "LLAMA_VOCAB_TYPE_RWKV", "LLAMA_VOCAB_TYPE_SPM", "_lib",
        "ggml_backend_sched_eval_callback", "llama_pos", "llama_progress_callback",
    ),
    mtmd_cpp: (
        "MTMD_INPUT_CHUNK_TYPE_TEXT", "mtmd_bitmap_p_ctypes", "mtmd_helper_post_decode_callback",
        "mtmd_input_text",
    ),
    Llama: (
        "close", "create_chat_completion", "create_completion", "detokenize", "embed", "eval",
        "generate", "load_state", "logits_to_logprobs", "reset", "sample", "save_state",
        "tokenize", "_create_completion", "_init_sampler",
    ),
    LlamaGrammar: ("from_json_schema", "from_string"),
    llama_chat_format: (
        "CHATML_CHAT_TEMPLATE", "ChatFormatter", "ChatFormatterResponse", "Jinja2ChatFormatter",
        "Llama3VisionAlphaChatHandler", "Llava15ChatHandler", "Llava16ChatHandler",
        "MTMDChatHandler", "MiniCPMv26ChatHandler", "MoondreamChatHandler",
        "NanoLlavaChatHandler", "ObsidianChatHandler", "Qwen25VLChatHandler",
        "_convert_completion_to_chat", "_convert_completion_to_chat_function",
        "_grammar_for_response_format", "chat_formatter_to_chat_completion_handler",
        "format_chatml", "format_llama3", "format_mistral_instruct",
        "get_chat_completion_handler", "guess_chat_format_from_gguf_metadata",
    ),
    llama_grammar: ("JSON_GBNF",),
    _logger: ("llama_log_callback",),
    _utils: ("suppress_stdout_stderr",),
    _internals: ("LlamaContext",),
}  # fmt: skip

# Functions of llama.cpp and libmtmd, and how many arguments they are given.
ARGUMENTS: dict[Any, dict[str, int]] = {
    lib: {
        "llama_batch_free": 1, "llama_batch_init": 3, "llama_decode": 2,
        "llama_get_logits_ith": 2, "llama_get_memory": 1, "llama_memory_clear": 2,
        "llama_memory_seq_cp": 5, "llama_memory_seq_keep": 2, "llama_memory_seq_pos_max": 2,
        "llama_memory_seq_pos_min": 2, "llama_memory_seq_rm": 4, "llama_model_get_vocab": 1,
        "llama_model_is_hybrid": 1, "llama_model_is_recurrent": 1, "llama_model_n_ctx_train": 1,
        "llama_model_n_embd_inp": 1, "llama_model_n_layer": 1, "llama_model_n_swa": 1,
        "llama_n_batch": 1, "llama_n_ctx": 1, "llama_n_seq_max": 1, "llama_n_ubatch": 1,
        "llama_sampler_free": 1, "llama_sampler_init_grammar": 3, "llama_set_adapter_cvec": 6,
        "llama_state_seq_get_data_ext": 5, "llama_state_seq_get_size_ext": 3,
        "llama_state_seq_set_data_ext": 5, "llama_synchronize": 1, "llama_token_to_piece": 6,
        "llama_vocab_get_attr": 2, "llama_vocab_get_text": 2, "llama_vocab_is_eog": 2,
        "llama_vocab_type": 1,
    },
    mtmd_cpp: {
        "mtmd_bitmap_free": 1, "mtmd_bitmap_get_id": 1, "mtmd_bitmap_get_nx": 1,
        "mtmd_bitmap_get_ny": 1, "mtmd_bitmap_init": 3, "mtmd_bitmap_set_id": 2,
        "mtmd_bitmap_set_mergeable": 2, "mtmd_context_params_default": 0,
        "mtmd_decode_use_mrope": 1, "mtmd_decode_use_non_causal": 2, "mtmd_default_marker": 0,
        "mtmd_encode_chunk": 2, "mtmd_free": 1, "mtmd_get_output_embd": 1,
        "mtmd_helper_bitmap_init_from_buf_wrapper": 5, "mtmd_helper_decode_image_chunk": 10,
        "mtmd_helper_eval_chunk_single": 8, "mtmd_helper_init_opt_default": 0,
        "mtmd_helper_log_set": 2, "mtmd_helper_video_free": 1, "mtmd_init_from_file": 3,
        "mtmd_input_chunk_copy": 1, "mtmd_input_chunk_free": 1, "mtmd_input_chunk_get_id": 1,
        "mtmd_input_chunk_get_n_pos": 1, "mtmd_input_chunk_get_n_tokens": 1,
        "mtmd_input_chunk_get_tokens_text": 2, "mtmd_input_chunk_get_type": 1,
        "mtmd_input_chunks_free": 1, "mtmd_input_chunks_get": 2, "mtmd_input_chunks_init": 0,
        "mtmd_input_chunks_size": 1, "mtmd_support_vision": 1, "mtmd_tokenize": 5,
    },
}  # fmt: skip

# Fields of structures: ctypes sets what is none of them without a word.
FIELDS: dict[Any, dict[str, tuple[str, ...]]] = {
    lib: {
        "llama_context_params": (
            "cb_eval", "cb_eval_user_data", "flash_attn_type", "kv_unified", "n_batch", "n_ctx",
            "n_seq_max", "n_ubatch", "swa_full",
        ),
        "llama_model_params": ("progress_callback",),
        "llama_batch": ("embd", "logits", "n_seq_id", "n_tokens", "pos", "seq_id", "token"),
    },
    mtmd_cpp: {
        "mtmd_context_params": ("flash_attn_type", "n_threads", "print_timings", "use_gpu"),
        "mtmd_input_text": ("add_special", "parse_special", "text", "text_len"),
        "mtmd_helper_bitmap_wrapper": ("bitmap", "video_ctx"),
    },
}  # fmt: skip

# Attributes that Llama.__init__ sets, and that are read or replaced here.
ATTRIBUTES = (
    "context_params", "model_params", "input_ids", "n_batch", "_ctx", "_model", "_stack",
    "_chat_handlers", "_n_ctx", "_requires_eval",
)  # fmt: skip
HANDLER_ATTRIBUTES = ("_mtmd_cpp", "clip_model_path")
GRAMMAR_ATTRIBUTES = ("_grammar",)


def require_names(
    owned: Mapping[Any, Sequence[str]], used: Mapping[Any, Sequence[str]] | None = None
) -> None:
    """Raise ImportError unless each owner of ``owned`` has its names, and each function of ``used``
    reads or sets its names."""
    missing = [
        f"{_name(owner)}.{name}"
        for owner, names in owned.items()
        for name in names
        if not hasattr(owner, name)
    ]
    for function, names in (used or {}).items():
        known = function.__code__.co_names
        missing += [f"{function.__qualname__}.{name}" for name in names if name not in known]
    _refuse(missing)


def require_shapes(
    arguments: Mapping[Any, Mapping[str, int]],
    fields: Mapping[Any, Mapping[str, Sequence[str]]],
) -> None:
    """Raise ImportError unless every function takes so many ``arguments``, and every structure has
    its ``fields``."""
    odd = []
    for owner, functions in arguments.items():
        for name, expected in functions.items():
            found = getattr(getattr(owner, name, None), "argtypes", None)
            if found is None:
                odd.append(f"{_name(owner)}.{name}")
            elif len(found) != expected:
                odd.append(f"{_name(owner)}.{name} of {expected} arguments (it has {len(found)})")
    for owner, structures in fields.items():
        for name, names in structures.items():
            known = {field[0] for field in getattr(getattr(owner, name, None), "_fields_", ())}
            odd += [f"{_name(owner)}.{name}.{field}" for field in names if field not in known]
    _refuse(odd)


def _name(owner: Any) -> str:
    return str(getattr(owner, "__name__", owner))


def _refuse(missing: Sequence[str]) -> None:
    if missing:
        raise ImportError(
            f"found llama-cpp-python {llama_cpp.__version__}, which lacks {', '.join(missing)}. "
            f"mars-gguf works with {SUPPORTED} and was tested with {TESTED}: "
            f"pip install llama-cpp-python=={TESTED}"
        )


require_names(NAMES)
require_shapes(ARGUMENTS, FIELDS)
require_names(
    {},
    {
        Llama.__init__: ATTRIBUTES,
        LlamaGrammar.__init__: GRAMMAR_ATTRIBUTES,
        llama_chat_format.MTMDChatHandler.__init__: HANDLER_ATTRIBUTES,
    },
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
