"""Writes docs/API.md from the docstrings and docs/COMMANDS.md from the help of every command.

    python docs/generate.py            write both pages
    python docs/generate.py API.md     write one

tests/docs/test_generate.py fails where a page is stale.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

DOCS = Path(__file__).parent
WIDTH = "100"  # of help texts

# What the page of the API has: a heading, what it is for, and objects of the package.
SECTIONS = {
    "Steer": (
        "If steering cannot do its work, an exception says so: a reply is never silently "
        "unsteered. [How pictures and films are given](MEDIA.md#in-python-and-over-http); "
        "[the equations](HOW_IT_WORKS.md), which `mars_gguf.steering` has with numpy alone.",
        ["SteeredLlama", "Steering", "steering.Policy"],
    ),
    "Vectors": (
        "Vector files, read, written and found. [The layout](VECTOR_FILE.md).",
        ["read_vector", "write_vector", "Vector", "runtime.finding.find_vector"],
    ),
    "Convert": (
        "The converter as a library. [What it does](CONVERTING.md).",
        [
            "convert.convert",
            "convert.Conversion",
            "convert.Prompts",
            "convert.Calibration",
            "convert.GgufOptions",
            "convert.CheckpointOptions",
            "convert.read_artefact",
        ],
    ),
}
ERRORS = ("MarsError", "VectorError", "ModelError", "PromptError", "SteeringError")
# Of these the page has whole docstrings, of all others the first sentence.
WHOLE = ("SteeredLlama", "Steering")
EXAMPLES = {
    "steer.py": "asks the package's model as text and as a picture",
    "convert_model.py": "converts the package's model",
    "ask_server.py": "asks a steered server with the `openai` client",
}
COMMANDS = (
    "convert", "chat", "evaluate", "demo", "rpc_server", "vectors", "vectors find",
    "vectors publish",
)  # fmt: skip


# API.md ------------------------------------------------------------------------------------------


def api() -> str:
    """The page of the Python API."""
    package = griffe.load("mars_gguf", search_paths=[str(DOCS.parent)])
    lines = [
        "# Python API",
        "",
        "`from mars_gguf import SteeredLlama` gives a `llama_cpp.Llama` whose replies are steered.",
        "",
        "This page is made from the docstrings by `python docs/generate.py`; `help(NAME)` has "
        "the types of the arguments, what each means, and what is raised.",
        "",
        "## Examples",
        "",
        *(f"- [`examples/{name}`](../examples/{name}) {what}." for name, what in EXAMPLES.items()),
    ]
    for heading, (purpose, names) in SECTIONS.items():
        lines += ["", f"## {heading}", "", purpose]
        for name in names:
            lines += ["", *entry(package[name])]
    lines += ["", "## Errors", "", "All of them are in `mars_gguf.errors`.", ""]
    lines += [f"- `{name}`: {first_sentence(package['errors'][name])}" for name in ERRORS]
    return "\n".join(lines) + "\n\n[All documents](../README.md#documents)\n"


def entry(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The lines about a class or a function: how it is called, and what its docstring says."""
    yield f"### {found.name}"
    yield ""
    yield from signature(found)
    if found.name in WHOLE:
        yield from docstring(found)
    else:
        yield from ("", marked(first_sentence(found)))
    if found.is_class:
        members = [*attributes(found), *methods(found, found.name in WHOLE)]
        yield from [""] * bool(members)
        yield from members


def methods(found: griffe.Object | griffe.Alias, whole: bool) -> Iterator[str]:
    """The documented methods of a class as a list: how they are called, and what they do."""
    for member in found.members.values():
        if member.is_function and not member.name.startswith("_") and member.docstring:
            call = f"{member.name}({', '.join(parameters(member))})"
            text = " ".join(member.docstring.value.split()).partition(" Raises ")[0]
            about = text if whole else first_sentence(member)
            yield f"- `{call}`: {marked(about)}"


def parameters(function: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The parameters of a function, by name and default."""
    keywords = False
    for parameter in function.parameters:
        kind = parameter.kind.value
        if kind == "keyword-only" and not keywords:
            keywords = True
            yield "*"
        if kind.startswith("variadic"):
            yield {"variadic positional": "*", "variadic keyword": "**"}[kind] + parameter.name
        elif parameter.name != "self":
            value = str(parameter.default).replace("'", '"')
            yield parameter.name + (f"={value}" if parameter.default else "")


def first_sentence(found: griffe.Object | griffe.Alias) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = found.docstring.value.split("\n\n")[0] if found.docstring else ""
    return re.split(r"(?<=\.) (?=[A-Z`])", " ".join(paragraph.split()))[0]


def signature(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    """How ``found`` is imported and called, as a block of code, formatted as ruff does."""
    function = found.members["__init__"] if found.is_class else found
    given = list(parameters(function))
    returned = "" if found.is_class else f" -> {found.returns}"
    yield "```python"
    yield f"from {found.parent.path} import {found.name}"
    yield ""
    if len(whole := f"{found.name}({', '.join(given)}){returned}") <= 100:
        yield whole
    else:
        inside = "    " + ", ".join(given)
        lines = [inside] if len(inside) <= 100 else [f"    {parameter}," for parameter in given]
        yield from [f"{found.name}(", *lines, f"){returned}"]
    yield "```"


def attributes(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    """The documented properties of a class."""
    for member in found.members.values():
        if member.is_attribute and not member.name.startswith("_") and member.docstring:
            yield f"- `{member.name}`: {marked(first_sentence(member))}"


def docstring(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    """A docstring as Markdown: paragraphs of the form ``name: text`` become list items."""
    text = found.docstring.value if found.docstring else ""
    for paragraph in text.split("\n\n"):
        yield ""
        if re.match(r"    ", paragraph):
            yield from ["```", *(line[4:] for line in paragraph.splitlines()), "```"]
            continue
        for line in paragraph.splitlines():
            item = re.match(r"(\w+(?:, \w+)*): (.*)", line)
            if item and re.match(r"\w+(?:, \w+)*: ", paragraph):
                yield marked(f"- `{item[1]}`: {item[2]}")
            else:
                yield marked("  " + line.strip() if line.startswith(" ") else line)


def marked(text: str) -> str:
    return text.replace("``", "`").replace("<", "&lt;")


# COMMANDS.md -------------------------------------------------------------------------------------


def commands() -> str:
    """The page of the command line."""
    lines = [
        "# Commands",
        "",
        "`mars-gguf NAME` and `python -m mars_gguf.NAME` are the same command. "
        "`mars-gguf` lists them, `mars-gguf --version` tells the version. "
        "[Errors and exit codes](TROUBLESHOOTING.md).",
        "",
        "This page is made from the help of each command by `python docs/generate.py`. What "
        "several commands take is explained at the first of them; `--help` has all of it.",
        "",
        "`mars_gguf.server` has a [page of its own](SERVER.md#settings).",
    ]
    said: dict[str, str] = {}
    for name in COMMANDS:
        lines += ["", f"## mars_gguf.{name}", "", "```", *news(name, said), "```"]
    return "\n".join(lines) + "\n\n[All documents](../README.md#documents)\n"


def news(command: str, said: dict[str, str]) -> list[str]:
    """The lines of a command's help, without a usage of one form, and with the name alone of an
    option that an earlier command explains in the same words, as ``said`` has: text -> command."""
    usage, _, rest = help_of(command).partition("\n\n")
    lines = [usage, ""] if "\n       mars-gguf" in usage else []
    for paragraph in rest.split("\n\n"):
        parts = re.split(r"\n(?=  -)", paragraph)
        known: dict[str, list[str]] = {}
        new = []
        for part in parts:
            text = " ".join(part.split())
            option = re.match(r"-[-\w]+", text)
            if text.startswith("-h, --help"):
                continue
            if option and said.setdefault(text, command) != command:
                known.setdefault(said[text], []).append(option[0])
            else:
                new.append(part)
        new += [f"  {' '.join(known[earlier])}: as of mars_gguf.{earlier}" for earlier in known]
        if len(new) > 1 or len(parts) == 1:  # else a heading alone
            lines += [*new, ""]
    return lines[:-1]


def help_of(command: str) -> str:
    """What ``python -m mars_gguf.COMMAND --help`` prints."""
    name, *task = command.split()
    module = importlib.import_module(f"mars_gguf.{name}")
    if name == "vectors":
        module = importlib.import_module("mars_gguf.vectors_command")
    elif not hasattr(module, "main"):
        module = importlib.import_module(f"mars_gguf.{name}.__main__")
    printed = io.StringIO()
    os.environ["COLUMNS"] = WIDTH
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main([*task, "--help"])
    # Python 3.13 names an option's value once, earlier ones after each of its names.
    return re.sub(r"(-\w+) (\S+)(?=, --\S+ \2)", r"\1", printed.getvalue()).strip()


PAGES = {"API.md": api, "COMMANDS.md": commands}


if __name__ == "__main__":
    for page in sys.argv[1:] or PAGES:
        (DOCS / page).write_text(PAGES[page](), encoding="utf-8")
