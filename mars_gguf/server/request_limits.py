"""Limits of requests: one table of what is bounded, by what, and what a client is told who goes
beyond, and the functions that apply it.

Fields of requests are counted here. What else is bounded is counted where it is known, and held
against the table there by `require`. docs/SERVER.md says the same limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mars_gguf.server.http_errors import RequestError

Count = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Limit:
    """At most ``most`` of ``what``; None: as a setting says. Who goes beyond gets ``status``, and
    ``message`` with ``found``, ``most`` and other words filled in; 0: the connection is closed.
    ``count``: how much of it the fields of a request have."""

    what: str
    most: float | None
    status: int
    message: str = ""
    count: Count | None = None


def _values(field: str) -> Count:
    """How many values a list or an object has."""
    return lambda request: _size(request.get(field))


def _longest(field: str) -> Count:
    """How long the longest text is: of a text, of a list, or of the keys of an object."""

    def count(request: Mapping[str, Any]) -> float:
        given = request.get(field)
        texts = given if isinstance(given, list | dict) else [given]
        return max((len(text) for text in texts if isinstance(text, str)), default=0)

    return count


def _number(field: str) -> Count:
    """A number, which may be written as a text."""

    def count(request: Mapping[str, Any]) -> float:
        with suppress(TypeError, ValueError, OverflowError):
            return float(request.get(field, 0))
        return 0

    return count


def _parts(request: Mapping[str, Any]) -> float:
    """How many parts and calls of tools are in all messages together."""
    given = [request.get("messages"), request.get("input")]
    messages = [each for some in given if isinstance(some, list) for each in some]
    inner = [value for each in messages if isinstance(each, dict) for value in each.values()]
    return sum(len(value) for value in inner if isinstance(value, list))


def _size(value: object) -> int:
    return len(value) if isinstance(value, list | dict) else 0


_FOUND = "found {found} {what}, expected at most {most}"
_SCHEMA = "{where}: found more than {most} {what}, expected a smaller schema"
_KEPT = ", counting those before it in the request"
LIMITS = {
    # A body, before it is a request. Its marks are , { and [, each at most a value of 100 bytes.
    "body": Limit(
        "bytes of a request", None, 413, "the request has more than {most} bytes"
    ),
    "body_seconds": Limit(
        "seconds for a body to arrive", 60, 408, "the request took more than {most:g} s to arrive"
    ),
    "held": Limit(
        "bytes of requests and their pictures held at a time", None, 503,
        "the server holds as many requests as it can: try again later",
    ),
    "marks": Limit("commas and brackets", 1 << 19, 413, _FOUND),
    "values": Limit("values", 50_000, 413, "found more than {most} {what} in the request"),
    "text": Limit(  # more than any context holds
        "characters besides pictures", 4 << 20, 413, "found more than {most} {what}"
    ),
    "levels": Limit(
        "levels of values", 100, 400,
        "found more than {most} {what}: the request is nested too deeply",
    ),
    "tokens": Limit("tokens to be made into text", 1 << 18, 413),  # besides those are values
    # What is wrong with one of these is a list of errors: each is held against all it could be.
    "messages": Limit("messages", 1024, 400, "messages: " + _FOUND, _values("messages")),
    "parts": Limit(
        "parts of messages and calls of tools", 1024, 400,
        "messages: found {found} parts, expected at most {most}", _parts,
    ),
    "tools": Limit("tools", 256, 400, "tools: " + _FOUND, _values("tools")),
    "functions": Limit("functions", 256, 400, "functions: " + _FOUND, _values("functions")),
    "prompt": Limit("prompts", 1, 400, "prompt: " + _FOUND, _values("prompt")),
    "input": Limit("texts to embed", 2048, 400, "input: " + _FOUND, _values("input")),
    "n": Limit("replies", 1, 400, "n: found {found:g}, expected {most} reply", _number("n")),
    "stop": Limit("texts to stop at", 64, 400, "stop: " + _FOUND, _values("stop")),
    "stop_length": Limit(  # at each token of a stream all beginnings are looked for at its end
        "characters of a text to stop at", 256, 400,
        "stop: found {found} characters, expected at most {most} in each", _longest("stop"),
    ),
    "bias": Limit("biased tokens", 1024, 400, "logit_bias: " + _FOUND, _values("logit_bias")),
    "bias_length": Limit(  # each is tokenized while all requests wait
        "characters of a biased token", 256, 400,
        "logit_bias: found a key of {found} characters, expected at most {most}",
        _longest("logit_bias"),
    ),
    # As the OpenAI API has them: more are megabytes a token, and hold the model while sorted.
    "top_logprobs": Limit(
        "other tokens with their probabilities, in a chat", 20, 400,
        "top_logprobs: found {found:g}, expected 0 to {most}", _number("top_logprobs"),
    ),
    "logprobs": Limit(
        "the same, in a completion", 5, 400,
        "logprobs: found {found:g}, expected 0 to {most}", _number("logprobs"),
    ),
    "grammar": Limit("characters of a grammar that a schema makes", 1 << 20, 400, _SCHEMA),
    "schemas": Limit("schemas and values in one, references followed", 2000, 400, _SCHEMA),
    "nesting": Limit("levels of a schema", 100, 400, _SCHEMA),
    "pattern": Limit("characters of a pattern in it", 16 << 10, 400, _SCHEMA),
    "media": Limit("pictures and films", 32, 400, _FOUND),
    "frames": Limit("frames of a film that are given", None, 400, "a film: " + _FOUND),
    "media_bytes": Limit(
        "bytes of pictures and films", None, 413,
        "a picture or film is too large: expected at most {most} bytes" + _KEPT,
    ),
    "pixels": Limit("pixels of them, decoded", None, 400),  # the decoder says how many it found
    "media_seconds": Limit(
        "seconds to fetch and decode them", 10, 400,
        "a picture or film takes too long to {what}: send fewer or smaller ones",
    ),
    "waiting": Limit(
        "requests that wait for the model", 128, 503, "too many requests wait: try again later"
    ),
    "reply_seconds": Limit(
        "seconds that the model works on a request", None, 400,
        "the reply took too long: ask for fewer tokens, or for a stream",
    ),
    "turn_seconds": Limit(
        "the same, where other clients wait", None, 503,
        "the reply took too long while others wait: ask for fewer tokens or a stream, or later",
    ),
    "reply": Limit(
        "bytes of a reply that is sent at once", 16 << 20, 400,
        "the reply is too long to be sent at once: ask for a stream, for fewer tokens or texts, or "
        "without logprobs",
    ),
    "unread": Limit(
        "bytes of a stream that its client leaves unread", 1 << 20, 408,
        "the reply was given up: its client does not read it",
    ),
    "connections": Limit(  # a quarter of the files that a process may commonly have open
        "connections", 256, 503
    ),
    "head_seconds": Limit("seconds for the head of a request, or a handshake of TLS", 10, 0),
    "framing": Limit(  # each chunk takes 10 microseconds
        "bytes about the chunks of a body, besides a sixteenth of it", 64 << 10, 0
    ),
    "stalled_seconds": Limit("seconds in which a client does not read its reply", 30, 0),
}  # fmt: skip


def most(name: str) -> int:
    """The number of a limit that no setting has."""
    number = LIMITS[name].most
    assert number is not None
    return int(number)


def exceeded(name: str, at_most: float | None = None, **words: Any) -> RequestError:
    """The error of who goes beyond a limit, which is ``at_most`` where a setting has it; ``words``
    are those that its message needs besides."""
    limit = LIMITS[name]
    said = {"what": limit.what, "most": limit.most if at_most is None else at_most} | words
    return RequestError(limit.message.format_map(said), limit.status, limit=name)


def require(name: str, found: float, at_most: float | None = None, **words: Any) -> None:
    """Raises RequestError if ``found`` is more than the limit."""
    if found > (most(name) if at_most is None else at_most):
        raise exceeded(name, at_most, found=found, **words)


def require_few(request: Mapping[str, Any]) -> None:
    """Raises RequestError for a request, as its JSON has it, one of whose fields goes beyond."""
    for name, limit in LIMITS.items():
        if limit.count is not None:
            require(name, limit.count(request))
