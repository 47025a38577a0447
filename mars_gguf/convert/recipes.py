"""Reads recipes: a TOML file says how a vector was made, and makes it again.

    python -m mars_gguf.convert --recipe convert/NAME.toml

docs/CONVERTING.md shows a recipe with every key. Every key but output and one of path and hub may
be left out. Paths are relative to the recipe. A recipe says what is measured; what machine it runs
on stays with the command line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from mars_gguf.errors import MarsError
from mars_gguf.formats import HANDLERS
from mars_gguf.modalities import MODALITIES
from mars_gguf.reasoning import REASONINGS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DTYPES = ("auto", "float32", "bfloat16", "float16")
KEYS: dict[str, dict[str, tuple[str, str]]] = tomllib.loads(
    (files("mars_gguf.convert") / "data" / "recipe.toml").read_text(encoding="utf-8")
)
_KINDS = {
    "text": str,
    "a path": str,
    "a range": str,  # of blocks
    "a whole number": int,
    "a number": float,
    "a list": list,  # of MODALITIES
    "a table": dict,
    "true or false": bool,
}
_CHOICES = {"dtype": DTYPES, "chat_handler": HANDLERS, "reasoning": REASONINGS}


def read_recipe(path: Path) -> dict[str, Any]:
    """Reads the choices that a recipe makes, by name; those it does not make are absent. Raises
    MarsError for a file that is no recipe, naming the key."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MarsError(f"{path}: no such recipe") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise MarsError(f"{path}: cannot be read as TOML ({error})") from error
    sections = {name: value for name, value in content.items() if isinstance(value, dict)}
    sections[""] = {name: value for name, value in content.items() if name not in sections}
    choices: dict[str, Any] = {}
    for section, values in sections.items():
        if section not in KEYS:
            known = ", ".join(f"[{name}]" for name in KEYS if name)
            raise MarsError(f"{path}: unknown section [{section}], expected {known}")
        for key, value in values.items():
            try:
                name, choice = _choice(section, key, value)
            except ValueError as error:
                raise MarsError(f"{path}: {error}") from None
            is_path = KEYS[section][key][0] == "a path"
            choices[name] = os.path.normpath(path.parent / choice) if is_path else choice
    model = sections.get("model", {})
    if ("path" in model) == ("hub" in model):
        raise MarsError(f"{path}: [model] needs a path or a hub id, one of them")
    _require_together(path, model)
    if "file" in model:  # a GGUF of the hub
        choices["hf_repo"] = choices.pop("input")
    if "output" not in choices:
        raise MarsError(f"{path}: output is missing")
    return choices


def _require_together(path: Path, model: Mapping[str, Any]) -> None:
    """Raises MarsError for files of a hub without its name, or beside what excludes them."""
    for key, needed in (("file", "hub"), ("mmproj_file", "file"), ("revision", "hub")):
        if key in model and needed not in model:
            raise MarsError(f"{path}: model.{key} needs model.{needed}")
    for key, other in (("file", "revision"), ("file", "mmproj"), ("file", "dtype")):
        if key in model and other in model:
            raise MarsError(f"{path}: model.{other} does not go with model.{key}, a GGUF file")


def _choice(section: str, key: str, value: Any) -> tuple[str, Any]:
    """The choice that a key makes, its name first. Raises ValueError."""
    name = f"{section}.{key}" if section else key
    if key not in KEYS[section]:
        raise ValueError(f"unknown key {name}, expected one of {', '.join(KEYS[section])}")
    expected, choice = KEYS[section][key]
    kind = _KINDS[expected]
    if kind is float and type(value) is int:
        value = float(value)
    found = type(value)  # not isinstance: True is no whole number
    if found is not kind or (kind is str and (not value or "\0" in value)):  # NUL: no path
        raise ValueError(f"{name} is {value!r:.60}, expected {expected}")
    if kind is list and (not value or not set(map(str, value)) <= set(MODALITIES)):
        raise ValueError(f"{name} is {value!r:.60}, expected some of {MODALITIES}")
    if value not in (choices := _CHOICES.get(choice, [value])):
        raise ValueError(f"{name} is {value!r:.60}, expected one of {choices}")
    least, most = (0, (1 << 32) - 1) if choice == "seed" else (1, 1 << 24)
    if kind is int and not least <= value <= most:
        raise ValueError(f"{name} is {value}, expected {least} to {most}")
    if expected == "a range":
        blocks = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", value, re.ASCII)
        if blocks is None:
            raise ValueError(f"{name} is {value!r:.60}, expected FIRST-LAST, as in 8-20, or one")
        first, last = blocks.groups(default=blocks[1])
        return choice, (int(first), int(last))
    return choice, value
