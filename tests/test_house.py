"""Each room of the package knows only what lies below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mars_gguf

PACKAGE = Path(mars_gguf.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# From the ground up; what stands in one line stands beside one another.
ROOMS = [
    [
        "__init__",
        "errors",
        "steering",
        "statistics",
        "openings",
        "reasoning",
        "modalities",
        "formats",
    ],
    ["files", "console", "interrupts", "markdown", "vectors"],
    ["hub", "media"],
    ["runtime", "demo_model"],
    ["options"],
    ["loading", "convert", "evaluate"],
    ["chat", "server", "rpc_server", "bench", "demo", "__main__"],
]
# Besides the runtime: plain llama-cpp-python, to compare with, and its server.
KNOW_LLAMA_CPP = ("runtime", "server", "bench", "demo")
PURE = ("steering", "statistics", "openings", "reasoning", "vectors", "convert.prompts",
        "convert.geometry", "convert.extractor", "convert.pipeline", "convert.splits",
        "convert.layers", "convert.calibration", "convert.probes", "convert.neutral",
        "convert.refusals")  # fmt: skip


def imports(path: Path, *, anywhere: bool) -> Iterator[str]:
    """The modules that a file imports; with ``anywhere``, within functions, too. What is imported
    for type checkers alone does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif anywhere or not isinstance(node, ast.FunctionDef | ast.ClassDef):
            nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
            nodes += [h for h in ast.iter_child_nodes(node) if isinstance(h, ast.ExceptHandler)]


def ours(path: Path, *, anywhere: bool) -> set[str]:
    return {name for name in imports(path, anywhere=anywhere) if name in MODULES}


def floor(module: str) -> int:
    inner = module.removeprefix("mars_gguf").removeprefix(".") or "__init__"
    names = [inner, *(inner + ".__init__",) * (module in ("mars_gguf.convert",))]
    best = -1
    for height, rooms in enumerate(ROOMS):
        for room in rooms:
            exact = room in names
            if exact or (best < 0 and inner.split(".")[0] == room):
                best = height
            if exact:
                return height
    return best


def test_every_module_stands_in_a_room() -> None:
    assert [module for module in MODULES if floor(module) < 0] == []


def test_no_module_imports_what_lies_above_it() -> None:
    upwards = [
        (module, other)
        for module, path in MODULES.items()
        for other in ours(path, anywhere=True)
        if floor(other) > floor(module)
    ]
    assert upwards == []


def test_there_is_no_circle_of_imports() -> None:
    graph = {module: ours(path, anywhere=False) - {module} for module, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_llama_cpp_is_known_where_it_is_meant_to_be() -> None:
    knowing = {
        module.removeprefix("mars_gguf.").split(".")[0]
        for module, path in MODULES.items()
        if any(name.split(".")[0] == "llama_cpp" for name in imports(path, anywhere=True))
    }
    assert knowing == set(KNOW_LLAMA_CPP)


def test_private_modules_of_llama_cpp_python_are_imported_in_one_place_of_each_room() -> None:
    private = {
        module
        for module, path in MODULES.items()
        for name in imports(path, anywhere=True)
        if name.startswith("llama_cpp.") and any(part[0] == "_" for part in name.split("."))
    }
    assert private <= {"mars_gguf.runtime.compat", "mars_gguf.server.compat"}


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_needs_neither_llama_cpp_nor_torch(module: str) -> None:
    seen: set[str] = set()
    todo = [f"mars_gguf.{module}"]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            found = set(imports(MODULES[name], anywhere=False))
            assert not {n.split(".")[0] for n in found} & {"llama_cpp", "torch", "transformers"}
            todo += found & MODULES.keys()


def test_functions_and_classes_fit_on_a_screen_or_a_few() -> None:
    long = [
        (module, node.name, length)
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1)
        > (250 if isinstance(node, ast.ClassDef) else 60)
    ]
    assert long == []
