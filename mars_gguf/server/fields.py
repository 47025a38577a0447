"""Lists every field that a request may have, and what it may hold; no other is taken.

docs/SERVER.md has the same list. Where a bound is not in the types of request_types.py, it is in
checks.py, in bodies.py or in runtime/limits.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mars_gguf.server.checks import RequestError

Route = Literal["chat", "completion", "embedding"]
EVERY: tuple[Route, ...] = ("chat", "completion", "embedding")
REPLIES: tuple[Route, ...] = ("chat", "completion")


@dataclass(frozen=True)
class Row:
    """Fields of one kind.

    taken: what they may hold; None of those that have no effect, and are let be since clients that
        know nothing of this server send them.
    """

    names: str
    routes: tuple[Route, ...]
    taken: str | None = None


TABLE = (
    Row("model", EVERY, "an alias; anything else means the first model"),
    Row("messages", ("chat",), "at most 1,024, and as many parts and calls together"),
    Row("prompt", ("completion",), "one text"),
    Row("suffix echo", ("completion",), "a text; a boolean"),
    Row("input", ("embedding",), "a text, or at most 2,048"),
    Row("tools functions", ("chat",), "at most 256"),
    Row(
        "tool_choice function_call",
        ("chat",),
        "as in the OpenAI API; a name must be of the request",
    ),
    Row("response_format", ("chat",), "as in the OpenAI API; schemas within the limits below"),
    Row("max_tokens", REPLIES, "at most what fits the context; 0 means that"),
    Row("max_completion_tokens", ("chat",), "another name for `max_tokens`"),
    Row("min_tokens", REPLIES, "0 or more; without effect on a steered reply"),
    Row("stop", REPLIES, "a text, or at most 64"),
    Row("stream", REPLIES, "a boolean"),
    Row("n", REPLIES, "1"),
    Row("logprobs", REPLIES, "a boolean; of a completion 0 to 5"),
    Row("top_logprobs", ("chat",), "0 to 20"),
    Row("temperature", REPLIES, "1e-6 to 1e6; 0 is greedy, less draws untempered"),
    Row("top_p min_p", REPLIES, "0 to 1"),
    Row("top_k", REPLIES, "0 or more"),
    Row("presence_penalty frequency_penalty", REPLIES, "-2 to 2"),
    Row("repeat_penalty", REPLIES, "0.001 to 100"),
    Row("mirostat_mode mirostat_tau mirostat_eta", REPLIES, "0 to 2; 0 to 10; 0.001 to 1"),
    Row("seed", REPLIES, "a number"),
    Row("logit_bias", REPLIES, "at most 1,024, each -1e6 to 1e6; 0 or more for what ends replies"),
    Row("logit_bias_type", REPLIES, "`input_ids` or `tokens`"),
    Row("grammar", REPLIES, "GBNF of at most 32,768 characters"),
    Row("mars", REPLIES, "`vector`, where the operator allows it"),
    Row("user", EVERY),
    Row("best_of", ("completion",)),
    Row("encoding_format", ("embedding",)),
    Row("stream_options", REPLIES),
    Row("store metadata service_tier safety_identifier moderation", ("chat",)),
    Row("prompt_cache_key prompt_cache_options prompt_cache_retention", ("chat",)),
    Row("modalities prediction verbosity web_search_options parallel_tool_calls", ("chat",)),
    Row("reasoning reasoning_effort thinking enable_thinking chat_template_kwargs", ("chat",)),
    Row("cache_prompt keep_alive repetition_penalty typical_p tfs_z", REPLIES),
    Row("extra nwo", ("completion",)),
)


def names_of(route: Route, *, taken: bool) -> set[str]:
    """The fields of a request that are taken, or those without effect."""
    rows = (row for row in TABLE if route in row.routes and (row.taken is not None) == taken)
    return {name for row in rows for name in row.names.split()}


KNOWN = {route: names_of(route, taken=True) | names_of(route, taken=False) for route in EVERY}


def require_known(route: Route, given: Iterable[str]) -> None:
    """Raises RequestError for a field that is not in the table."""
    for name in given:
        if name not in KNOWN[route]:
            raise RequestError(f"{name[:40]!r}: no field of a {route} request that is known here")
