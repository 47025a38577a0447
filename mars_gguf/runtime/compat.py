"""Checks what is used of llama-cpp-python and ggml, the undocumented names above all (compat.json),
before anything else of the runtime is imported."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as lib

SUPPORTED = ">=0.3.36,<0.4"  # as in setup.py: the first that has all of this
TESTED = "0.3.36"

# By owner: names; functions, and how many arguments they are given; fields of structures, where
# ctypes sets what is none of them without a word; attributes that a function sets or reads. And
# functions of ggml: the types of their result and of their arguments.
USED: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)


def missing() -> Iterator[str]:
    """Names that are used and are not there, or are otherwise."""
    for owner, names in USED["names"].items():
        yield from (f"{owner}.{name}" for name in names if _found(f"{owner}.{name}") is None)
    for owner, functions in USED["arguments"].items():
        for name, expected in functions.items():
            found = getattr(_found(f"{owner}.{name}"), "argtypes", None)
            if found is None:
                yield f"{owner}.{name}"
            elif len(found) != expected:
                yield f"{owner}.{name} of {expected} arguments (it has {len(found)})"
    for structure, fields in USED["fields"].items():
        known = {field[0] for field in getattr(_found(structure), "_fields_", ())}
        yield from (f"{structure}.{field}" for field in fields if field not in known)
    for function, attributes in USED["attributes"].items():
        if (found := _found(function)) is not None:
            yield from unnamed(found, *attributes)
        elif _found(function.rpartition(".")[0]) is not None:  # else that is said already
            yield function


def _found(path: str) -> Any:
    try:
        return resolve_name(path)
    except (ImportError, AttributeError):
        return None


def unnamed(function: Any, *names: str) -> Iterator[str]:
    """Those of ``names`` that ``function`` neither reads nor sets."""
    known = function.__code__.co_names
    yield from (f"{function.__qualname__}.{name}" for name in names if name not in known)


def require_none(missing: Iterable[str]) -> None:
    """Raise ImportError for any that are ``missing``."""
    if lacking := list(missing):
        raise ImportError(
            f"found llama-cpp-python {llama_cpp.__version__}, which lacks {', '.join(lacking)}. "
            f"mars-gguf works with {SUPPORTED} and was tested with {TESTED}: "
            f"pip install llama-cpp-python=={TESTED}"
        )


require_none(missing())
LlamaContext = resolve_name("llama_cpp._internals.LlamaContext")
llama_log_callback = resolve_name("llama_cpp._logger.llama_log_callback")
suppress_stdout_stderr = resolve_name("llama_cpp._utils.suppress_stdout_stderr")


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
    types = {**vars(ctypes), "void": None, "gguf_init_params": GgufParams}
    accessors = SimpleNamespace()
    for name, (result, *arguments) in USED["ggml"].items():
        function = _exported(name)
        function.restype, function.argtypes = types[result], [types[kind] for kind in arguments]
        setattr(accessors, name, function)
    return accessors


ggml = _ggml()
