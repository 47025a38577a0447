"""What is used of llama-cpp-python is checked when it is imported: all of it, and said."""

from __future__ import annotations

import ast
import ctypes
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import Llama, _internals, llama_chat_format, mtmd_cpp
from llama_cpp import llama_cpp as lib

import mars_gguf
from mars_gguf.runtime import compat

PACKAGE = Path(mars_gguf.__file__).parent
TREES = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
OWN_INTERFACE = {"server"}  # of llama_cpp.server, whose names are imported where they are used


@pytest.fixture(autouse=True)
def imported_again() -> Any:
    yield
    importlib.reload(compat)


def modules_of(tree: ast.AST) -> dict[str, str]:
    """What of llama_cpp a file imports as a whole: the name there, and that of the module."""
    return {
        alias.asname or alias.name: f"llama_cpp.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "llama_cpp"
        for alias in node.names
    }


def used() -> Iterator[tuple[str, str]]:
    """Every name of a module of llama_cpp that the package reads or imports, and that module."""
    for tree in TREES.values():
        modules = modules_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in modules:
                    yield modules[node.value.id], node.attr
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("llama_cpp."):
                yield from ((str(node.module), alias.name) for alias in node.names)


def declared() -> set[tuple[str, str]]:
    names = {
        (owner, name)
        for table in (compat.USED["names"], compat.USED["arguments"])
        for owner, names in table.items()
        for name in names
    }
    structures = (path.rpartition(".") for path in compat.USED["fields"])
    return names | {(owner, name) for owner, _, name in structures}


def test_every_name_of_llama_cpp_python_that_is_used_is_checked() -> None:
    public = {"llama_cpp.llama_types", *(f"llama_cpp.{x}" for x in ("__file__", "__version__"))}
    found = {
        (module, name) for module, name in used()
        if module not in public and module.split(".")[1] not in OWN_INTERFACE
        and not name.startswith("__")
    }  # fmt: skip
    assert len(found) > 100
    assert found - declared() == set()


def test_functions_are_called_with_as_many_arguments_as_are_checked() -> None:
    arguments = compat.USED["arguments"].values()
    checked = {name: n for names in arguments for name, n in names.items()}
    called = set()
    for tree in TREES.values():
        modules = modules_of(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = node.func.value, node.func.attr
            if isinstance(owner, ast.Name) and owner.id in modules and name in checked:
                called.add(name)
                assert not node.keywords
                if not any(isinstance(argument, ast.Starred) for argument in node.args):
                    assert len(node.args) == checked[name], name
    assert set(checked) - called == {"mtmd_input_chunk_free"}  # called when a chunk is collected


def test_every_private_attribute_that_is_not_the_packages_own_is_checked() -> None:
    own, found = set[str](), set[str]()
    for path, tree in TREES.items():
        if path.relative_to(PACKAGE).parts[0] != "runtime":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                own.add(ast.unparse(node.target).removeprefix("self."))
            elif ast.unparse(node) == "os._exit":
                continue
            elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                found.add(node.attr)
                if isinstance(node.ctx, ast.Store):
                    own.add(node.attr)
    attributes = {name for names in compat.USED["attributes"].values() for name in names}
    checked = attributes | {name for _, name in declared()}
    assert found - own - checked == set()


def taking_more() -> Any:
    function = ctypes.CFUNCTYPE(ctypes.c_int32)()
    function.argtypes = [ctypes.c_void_p] * 7
    return function


class Older(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char_p), ("add_special", ctypes.c_bool)]


def init(self: Any) -> None:
    self._ctx = self._model = self._stack = None


@pytest.mark.parametrize(
    ("owner", "name", "found", "lacking"),
    [
        (_internals, "LlamaContext", None, r"\.LlamaContext"),
        (llama_chat_format, "MTMDChatHandler", None, r"\.MTMDChatHandler"),
        (Llama, "sample", None, r"\.sample"),
        (lib, "llama_set_adapter_cvec", taking_more(), r"cvec of 6 arguments \(it has 7\)"),
        (mtmd_cpp, "mtmd_input_text", Older, r"input_text\.parse_special, .*text\.text_len"),
        # What is set when a model is loaded is looked for in what sets it.
        (Llama, "__init__", init, r"init\.context_params, .*init\.model_params"),
    ],
)
def test_what_is_missing_or_otherwise_is_said_with_what_is_supported(
    owner: Any, name: str, found: Any, lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_cpp.__version__", "0.3.99")
    if found is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, found)
    said = (
        rf"found llama-cpp-python 0\.3\.99, which lacks .*{lacking}.*"
        rf"{re.escape(compat.SUPPORTED)}.*pip install llama-cpp-python=={compat.TESTED}"
    )
    with pytest.raises(ImportError, match=said):
        importlib.reload(compat)
    monkeypatch.undo()


def test_the_check_comes_before_anything_that_would_fail_without_a_word_about_versions() -> None:
    program = (
        "import llama_cpp.llama_chat_format as formats\n"
        "del formats.get_chat_completion_handler\n"
        "import mars_gguf.runtime.llama"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ImportError: found llama-cpp-python .*get_chat_completion_handler", said)
