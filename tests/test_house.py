"""Each room of the package knows only what lies below it; its tests are where its name says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mars_gguf

PACKAGE = Path(mars_gguf.__file__).parent
TESTS = Path(__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
# From the ground up; what stands in one line stands beside one another.
ROOMS = [
    ["__init__", "errors", "modalities", "statistics", "reasoning", "formats", "interrupts"],
    ["steering", "openings", "console"],
    ["files", "markdown", "vectors"],
    ["hub", "media", "progress"],
    ["runtime", "demo_model"],
    ["options", "loading"],
    ["convert", "evaluate"],
    ["chat", "server", "rpc_server", "demo", "vectors_command", "__main__"],
]
# Besides the runtime: plain llama-cpp-python, to compare with, and its server.
KNOW_LLAMA_CPP = ("runtime", "server", "demo")
# Checkpoints are read by these.
KNOW_TORCH = ("convert.checkpoint", "convert.extract_transformers")
PURE = ("steering", "statistics", "openings", "reasoning", "modalities", "vectors",
        "convert.prompts", "convert.geometry", "convert.extractor", "convert.pipeline",
        "convert.splits", "convert.layers", "convert.calibration", "convert.probes",
        "convert.neutral", "convert.refusals")  # fmt: skip
TOO_MANY = {"mars_gguf.runtime.llama.__init__", "mars_gguf.convert.conversion.convert"}

# Modules with a function of more than 50 lines, and how many it has at most.
LONG = {"mars_gguf.convert.probes": 59, "mars_gguf.convert.checkpoint": 51}


def imports(module: str, *, anywhere: bool = True) -> Iterator[str]:
    """The modules that a module imports, for type checkers alone included; with ``anywhere``,
    within functions, too."""
    nodes: list[ast.AST] = [TREES[module]]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif anywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES}


def floor(module: str) -> int:
    inner = module.removeprefix("mars_gguf").removeprefix(".") or "__init__"
    if inner.endswith("__main__"):  # what a room can do from the command line
        return len(ROOMS) - 1
    found = [height for height, rooms in enumerate(ROOMS) if inner.split(".")[0] in rooms]
    return found[0] if found else -1


def defined(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def test_every_module_stands_in_a_room() -> None:
    assert [module for module in MODULES if floor(module) < 0] == []


def test_no_module_imports_what_lies_above_it() -> None:
    # The package offers what lies above it by name, and imports it when it is asked for.
    below = [module for module in MODULES if module != "mars_gguf"]
    upwards = [(m, other) for m in below for other in ours(m) if floor(other) > floor(m)]
    assert upwards == []


def test_there_is_no_circle_of_imports() -> None:
    # What lies within a package is part of it: its __init__ may import it.
    graph = {
        module: {other for other in ours(module) if not module.startswith(f"{other}.")} - {module}
        for module in MODULES
        if module != "mars_gguf"
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_llama_is_subclassed_once() -> None:
    subclasses = [
        (module, node.name)
        for module in MODULES
        for node in defined(module)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).rpartition(".")[2].endswith("Llama") for base in node.bases)
    ]
    assert subclasses == [("mars_gguf.runtime.llama", "SteeredLlama")]


def test_llama_cpp_is_known_where_it_is_meant_to_be() -> None:
    knowing = {
        module.removeprefix("mars_gguf.").split(".")[0]
        for module in MODULES
        if any(name.split(".")[0] == "llama_cpp" for name in imports(module))
    }
    assert knowing == set(KNOW_LLAMA_CPP)


def test_torch_is_known_to_what_reads_checkpoints_alone() -> None:
    knowing = {
        module.removeprefix("mars_gguf.")
        for module in MODULES
        if any(name.split(".")[0] in ("torch", "transformers") for name in imports(module))
    }
    assert knowing <= set(KNOW_TORCH)


def test_private_modules_of_llama_cpp_python_are_imported_in_one_place_of_each_room() -> None:
    private = {
        module
        for module in MODULES
        for name in imports(module)
        if name.startswith("llama_cpp.") and any(part[0] == "_" for part in name.split("."))
    }
    assert private <= {"mars_gguf.runtime.compat"}


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_needs_neither_llama_cpp_nor_torch(module: str) -> None:
    seen: set[str] = set()
    todo = [f"mars_gguf.{module}"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            found = set(imports(name, anywhere=False))
            assert not {n.split(".")[0] for n in found} & {"llama_cpp", "torch", "transformers"}
            todo += found & MODULES.keys() - {"mars_gguf"}


def test_functions_and_classes_fit_on_a_screen_or_a_few() -> None:
    long = [
        (module, node.name, length)
        for module in MODULES
        for node in defined(module)
        if (length := (node.end_lineno or 0) - node.lineno + 1)
        > (200 if isinstance(node, ast.ClassDef) else LONG.get(module, 50))
    ]
    assert long == []


def test_no_function_takes_more_parameters_than_can_be_kept_in_mind() -> None:
    many = []
    for module in MODULES:
        for node in defined(module):
            if isinstance(node, ast.ClassDef):
                continue
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
            n = len(names) + len(node.args.kwonlyargs) - (names[:1] in (["self"], ["cls"]))
            if n > 8 and f"{module}.{node.name}" not in TOO_MANY:
                many.append((module, node.name, n))
    assert many == []


def test_first_lines_say_what_a_thing_is_or_does() -> None:
    riddles = [
        (module, getattr(node, "name", module))
        for module in MODULES
        for node in (TREES[module], *defined(module))
        if (ast.get_docstring(node) or "").startswith(("What ", "Of "))
    ]
    assert riddles == []


def test_every_module_has_a_docstring() -> None:
    assert [module for module in MODULES if not ast.get_docstring(TREES[module])] == []


def test_no_two_files_have_one_name_where_one_can_be_renamed() -> None:
    names = [path.name for path in MODULES.values() if not path.name.startswith("__")]
    assert {name for name in names if names.count(name) > 1} == set()


# Small modules whose tests are among those of another, which import them.
TESTED_IN = {
    "errors": "test_console.py",
    "evaluate.cases": "evaluate/test_suites.py",
    "evaluate.visual_questions": "evaluate/test_pages.py",
    "media.picture": "media/test_images.py",
}


def test_a_modules_tests_are_where_its_name_says() -> None:
    missing = []
    for module, path in MODULES.items():
        inner = path.relative_to(PACKAGE)
        if inner.name == "__init__.py":
            continue
        name = inner.stem.strip("_")
        if other := TESTED_IN.get(module.removeprefix("mars_gguf.")):
            if inner.stem not in (TESTS / other).read_text(encoding="utf-8"):
                missing.append(module)
        elif not (TESTS / inner.parent / f"test_{name}.py").exists():
            missing.append(module)
    assert missing == []
