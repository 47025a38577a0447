"""What a request must be before the model sees it. llama.cpp ends the process over some of what a
client can send; the rest would be reported as failures of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_cpp import llama_cpp as lib
from llama_cpp.server.types import CreateChatCompletionRequest

from mars_gguf.errors import MarsError
from mars_gguf.runtime.compat import suppress_stdout_stderr

MAX_GRAMMAR = 32 << 10  # characters; llama.cpp unrolls {1000}, to 260 MB at this length
MAX_PARENTHESES = 1000  # llama.cpp's parser recurses at each; 20,000 overflow its stack
MAX_BIASED = 256  # characters, of which each key is tokenized while all requests wait
MAX_BIAS = 1e6  # of a logit; if all that a grammar allows became -inf, llama.cpp would abort
MAX_REPEAT_PENALTY = 100.0  # a factor of logits, for the same reason


class RequestError(MarsError):
    """A request that cannot be served as it is; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def require_messages(messages: Sequence[Any]) -> None:
    """Raise RequestError for a chat message without content, unless it calls a tool."""
    for n, message in enumerate(messages):
        calls = message.get("tool_calls") or message.get("function_call")
        if message.get("content") is None and not calls:
            raise RequestError(f"messages[{n}]: found no content, expected text or parts")


def offered_tools(body: CreateChatCompletionRequest) -> list[Any]:
    """The functions that a request brings."""
    return [*(tool["function"] for tool in body.tools or []), *(body.functions or [])]


def chosen_tools(body: CreateChatCompletionRequest) -> set[str]:
    """The names of the functions that a request wants called."""
    chosen = set()
    if isinstance(body.tool_choice, dict):
        chosen.add(body.tool_choice["function"]["name"])
    if isinstance(body.function_call, dict):
        chosen.add(body.function_call["name"])
    return chosen


def require_tool(body: CreateChatCompletionRequest) -> None:
    """Raise RequestError if a request wants a tool called that it does not bring."""
    if not chosen_tools(body) <= {function["name"] for function in offered_tools(body)}:
        raise RequestError("tool_choice: names none of the tools of the request")


def require_free_reply(body: CreateChatCompletionRequest) -> None:
    """Raise RequestError for what lets a client write the beginning of a reply, so that it is no
    refusal whatever the state it comes from."""
    for name, given in (
        ("grammar", body.grammar is not None),
        ("logit_bias", bool(body.logit_bias)),
        ("response_format", (body.response_format or {}).get("type", "text") != "text"),
        ("tool_choice", isinstance(body.tool_choice, dict)),
        ("function_call", isinstance(body.function_call, dict)),
    ):
        if given:
            raise RequestError(f"this server lets no request say how replies begin ({name})", 403)


def require_grammar(llama: Any, grammar: str) -> None:
    """Raise RequestError for a grammar that llama.cpp cannot parse."""
    for what, found, limit in (
        ("characters", len(grammar), MAX_GRAMMAR),
        ("parentheses", grammar.count("("), MAX_PARENTHESES),
    ):
        if found > limit:
            raise RequestError(f"grammar: found {found} {what}, expected at most {limit}")
    with suppress_stdout_stderr(disable=llama.verbose):  # it would quote the grammar
        vocab = lib.llama_model_get_vocab(llama.model)
        sampler = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    if not sampler:
        raise RequestError(
            "grammar: not valid, expected GBNF with a rule 'root', every rule defined and none "
            "left-recursive"
        )
    lib.llama_sampler_free(sampler)


def require_short_biases(bias: Mapping[str, float] | None) -> None:
    """Raise RequestError for a bias of a text that is much longer than a token."""
    for text in bias or ():
        if len(text) > MAX_BIASED:
            raise RequestError(
                f"logit_bias: found a key of {len(text)} characters, expected at most {MAX_BIASED}"
            )


def require_logit_bias(llama: Any, bias: Mapping[str, float]) -> None:
    """Raise RequestError for a bias of what is no token, or one that is no sensible number."""
    n_vocab = llama.n_vocab()
    for token, value in bias.items():
        known = token.isascii() and token.isdigit() and len(token) < 20 and int(token) < n_vocab
        if not known:
            raise RequestError(
                f"logit_bias: found the key {token[:20]!r}, expected token ids from 0 to "
                f"{n_vocab - 1}, or text with logit_bias_type 'tokens'"
            )
        if not abs(value) <= MAX_BIAS:  # NaN neither
            raise RequestError(f"logit_bias: found {value}, expected at most {MAX_BIAS:.0f}")


def require_tokens(llama: Any, tokens: list[int]) -> None:
    """Raise RequestError unless all of ``tokens`` are in the vocabulary."""
    n_vocab = llama.n_vocab()
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise RequestError(f"tokens: found {token}, expected 0 to {n_vocab - 1}")
