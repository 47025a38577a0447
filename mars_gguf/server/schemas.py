"""Estimates what it takes to make a JSON schema into a grammar, before llama-cpp-python does.

It writes out every repetition, names rules by the path to them, and may write out a schema at each
reference to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from mars_gguf.server.request_limits import require
from mars_gguf.server.request_types import ChatRequest

_REPETITION = re.compile(r"\{([^}]*)\}")
_INNER = ("oneOf", "anyOf", "allOf", "prefixItems", "items", "additionalProperties")
_OVERHEAD = 16  # characters about a name in a rule


def require_schemas(body: ChatRequest, *, every_tool: bool) -> None:
    """Raises RequestError for a schema that would become too large a grammar: that of
    ``response_format``, and of the tool that must be called, or of ``every_tool``."""
    if body.response_format is not None and "schema" in body.response_format:
        schema = body.response_format["schema"]
        _Estimate(schema, "response_format.schema").visit(schema)
    chosen = body.chosen_tools
    for function in body.offered_tools:
        if every_tool or function["name"] in chosen:
            where = f"parameters of the tool {function['name'][:40]!r}"
            _Estimate(function["parameters"], where).visit(function["parameters"])


class _Estimate:
    """Adds up what writing the schema ``root`` out takes."""

    def __init__(self, root: object, where: str) -> None:
        self.root, self.where = root, where
        self.visits = self.written = 0
        self.followed: set[str] = set()  # references that lead to where the walk is

    def visit(self, schema: object, path: int = 0, depth: int = 0) -> None:
        """Adds what ``schema`` takes, whose name has ``path`` characters. Raises RequestError for
        what takes too much."""
        self.visits += 1
        require("schemas", self.visits, where=self.where)
        self._write(path + _OVERHEAD)
        if not isinstance(schema, Mapping):
            return
        require("nesting", depth, where=self.where)
        if isinstance(target := schema.get("$ref"), str):
            if target not in self.followed:
                self.followed.add(target)
                self.visit(self._resolved(target), len(target), depth + 1)
                self.followed.remove(target)
            return
        self._add_repetitions(schema, path)
        for length, inner in self._inner(schema):
            self.visit(inner, path + length, depth + 1)

    def _inner(self, schema: Mapping[str, Any]) -> Iterator[tuple[int, object]]:
        """Schemas within a schema, and what each adds to the length of its path."""
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            for name, inner in properties.items():
                yield len(name) + 1, inner
        for key in _INNER:
            given = schema.get(key)
            for inner in given if isinstance(given, list) else [given] if given else []:
                yield 20, inner

    def _add_repetitions(self, schema: Mapping[str, Any], path: int) -> None:
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            # Each is a rule with all that follow it, if they are optional.
            names = sum(map(len, properties))
            self._write(len(properties) * (len(properties) * (path + _OVERHEAD) + names) // 2)
        counts = [schema.get(key) for key in ("minItems", "maxItems", "minLength", "maxLength")]
        if isinstance(pattern := schema.get("pattern"), str):
            require("pattern", len(pattern), where=self.where)
            counts += _counts(pattern)
        for count in counts:
            if isinstance(count, int) and count > 0:
                self._write(count * (path + _OVERHEAD))
        for key in ("const", "enum", "type", "pattern"):
            self._write(len(json.dumps(schema.get(key))))

    def _resolved(self, reference: str) -> object:
        target: Any = self.root
        for name in reference.partition("#")[2].split("/")[1:]:
            if not isinstance(target, Mapping) or name not in target:
                return None  # llama-cpp-python says what it thinks of it
            target = target[name]
        return target

    def _write(self, characters: int) -> None:
        self.written += characters
        require("grammar", self.written, where=self.where)


def _counts(pattern: str) -> Iterator[int]:
    """The numbers of all repetitions in a pattern, read as llama-cpp-python reads them."""
    for found in _REPETITION.findall(pattern):
        for number in found.split(","):
            with suppress(ValueError):
                yield int(number)
