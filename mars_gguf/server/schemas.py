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

from llama_cpp.server.types import CreateChatCompletionRequest

from mars_gguf.server import checks
from mars_gguf.server.checks import RequestError

MAX_WRITTEN = 1 << 20  # characters; a grammar may have far fewer in the end
MAX_VISITS = 2000  # of schemas; as long as every one is some characters of a grammar
MAX_NESTING = 100
MAX_PATTERN = 16 << 10  # characters; "a****..." is copied at each
_REPETITION = re.compile(r"\{([^}]*)\}")
_INNER = ("oneOf", "anyOf", "allOf", "prefixItems", "items", "additionalProperties")
_OVERHEAD = 16  # characters about a name in a rule


def require_schemas(body: CreateChatCompletionRequest, *, every_tool: bool) -> None:
    """Raises RequestError for a schema that would become too large a grammar: that of
    ``response_format``, and of the tool that must be called, or of ``every_tool``."""
    if body.response_format is not None and "schema" in body.response_format:
        schema = body.response_format["schema"]
        _Estimate(schema, "response_format.schema").visit(schema)
    chosen = checks.chosen_tools(body)
    for function in checks.offered_tools(body):
        if every_tool or function["name"] in chosen:
            what = f"parameters of the tool {function['name'][:40]!r}"
            _Estimate(function["parameters"], what).visit(function["parameters"])


class _Estimate:
    """Adds up what writing the schema ``root`` out takes."""

    def __init__(self, root: object, what: str) -> None:
        self.root, self.what = root, what
        self.visits = self.written = 0
        self.followed: set[str] = set()  # references that lead to where the walk is

    def visit(self, schema: object, path: int = 0, depth: int = 0) -> None:
        """Adds what ``schema`` takes, whose name has ``path`` characters. Raises RequestError for
        what takes too much."""
        self.visits += 1
        if self.visits > MAX_VISITS:
            self._refuse(f"more than {MAX_VISITS} schemas and values, references followed")
        self._write(path + _OVERHEAD)
        if not isinstance(schema, Mapping):
            return
        if depth > MAX_NESTING:
            self._refuse(f"more than {MAX_NESTING} levels")
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
            if len(pattern) > MAX_PATTERN:
                self._refuse(f"a pattern of more than {MAX_PATTERN} characters")
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
        if self.written > MAX_WRITTEN:
            self._refuse(f"what makes more than {MAX_WRITTEN} characters of a grammar")

    def _refuse(self, found: str) -> None:
        raise RequestError(f"{self.what}: found {found}, expected a smaller schema")


def _counts(pattern: str) -> Iterator[int]:
    """The numbers of all repetitions in a pattern, read as llama-cpp-python reads them."""
    for found in _REPETITION.findall(pattern):
        for number in found.split(","):
            with suppress(ValueError):
                yield int(number)
