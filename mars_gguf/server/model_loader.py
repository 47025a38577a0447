"""Loads a model as the settings of ``llama_cpp.server`` and ours describe it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp.server.settings as upstream
from llama_cpp import Llama, LlamaDiskCache, LlamaRAMCache, llama_chat_format
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from llama_cpp.llama_tokenizer import LlamaHFTokenizer

from mars_gguf.errors import ModelError
from mars_gguf.hub import download
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.settings import RENDERED_FORMATS, TEMPLATES, ModelSettings
from mars_gguf.vectors import Vector

# Settings that are arguments of Llama as they are.
SHARED = upstream.ModelSettings.model_fields.keys() & inspect.signature(Llama).parameters.keys()
_TYPES: dict[str, Callable[[str], bool | int | float | str]] = {
    "bool": lambda text: text.lower() in ("true", "1"),
    "int": int,
    "float": float,
    "str": str,
}


def load_model(settings: ModelSettings, vector: Vector | None) -> SteeredLlama:
    """Loads the model, steered by ``vector``. Raises MarsError, and what llama-cpp-python raises:
    ValueError, OSError, ImportError.

    Chat templates and pictures are SteeredLlama's, except for formats that only llama-cpp-python
    can write prompts in.
    """
    rendered = settings.chat_format in RENDERED_FORMATS
    arguments = _arguments(settings) | {
        "vector": vector,
        "force": settings.force_vector,
        "reasoning": settings.reasoning,
    }
    if rendered:
        arguments |= {
            "chat_format": None,
            "template": settings.chat_format if settings.chat_format in TEMPLATES else None,
            "mmproj": mmproj_of(settings),
            "chat_template_kwargs": settings.chat_template_kwargs,
            "parse_special": settings.parse_special,
        }
    if settings.hf_model_repo_id is not None:
        llama = SteeredLlama.from_pretrained(
            settings.hf_model_repo_id, filename=settings.model, **arguments
        )
    else:
        llama = SteeredLlama(settings.model, **arguments)
    if rendered:
        llama.template.takes("user")  # raises ModelError if it shows no text
    elif settings.chat_template_kwargs:
        llama.chat_handler = partial(llama.chat_handler, **settings.chat_template_kwargs)
    if settings.cache:
        cache = LlamaDiskCache if settings.cache_type == "disk" else LlamaRAMCache
        llama.set_cache(cache(capacity_bytes=settings.cache_size))
    return llama


def mmproj_of(settings: ModelSettings) -> str | None:
    """The path of the mmproj, which is downloaded where the model comes from a hub."""
    mmproj = settings.clip_model_path
    if mmproj and settings.hf_model_repo_id:
        return download(settings.hf_model_repo_id, mmproj)
    return mmproj


def _arguments(settings: ModelSettings) -> dict[str, Any]:
    """Arguments of Llama, without those that tell which model and which mmproj it is."""
    arguments = {name: getattr(settings, name) for name in SHARED}
    tokenizer, draft = settings.hf_pretrained_model_name_or_path, settings.draft_model
    return arguments | {
        "rpc_servers": settings.rpc_servers,
        "kv_overrides": _overrides(settings.kv_overrides),
        "chat_handler": _chat_handler(settings),
        "tokenizer": LlamaHFTokenizer.from_pretrained(tokenizer) if tokenizer else None,
        "draft_model": draft
        and LlamaPromptLookupDecoding(num_pred_tokens=settings.draft_model_num_pred_tokens),
    }


def _overrides(given: list[str] | None) -> dict[str, bool | int | float | str] | None:
    """Values of the GGUF that others replace, of KEY=TYPE:VALUE. Raises ModelError."""
    if given is None:
        return None
    overrides = {}
    for text in given:
        key, _, typed = text.partition("=")
        kind, _, value = typed.partition(":")
        try:
            overrides[key] = _TYPES[kind](value)
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"kv_overrides: found {text!r}, expected KEY=TYPE:VALUE with a type of "
                f"{', '.join(_TYPES)}"
            ) from error
    return overrides


def _chat_handler(settings: ModelSettings) -> Any:
    """The chat handler of a format that files of transformers say, None for other formats."""
    name, config = settings.hf_pretrained_model_name_or_path, settings.hf_tokenizer_config_path
    if settings.chat_format == "hf-autotokenizer":
        if name is None:
            raise ModelError("chat_format hf-autotokenizer: give hf_pretrained_model_name_or_path")
        return llama_chat_format.hf_autotokenizer_to_chat_completion_handler(name)
    if settings.chat_format == "hf-tokenizer-config":
        if config is None:
            raise ModelError("chat_format hf-tokenizer-config: give hf_tokenizer_config_path")
        content = json.loads(Path(config).read_text(encoding="utf-8"))
        return llama_chat_format.hf_tokenizer_config_to_chat_completion_handler(content)
    return None
