"""Checks a request before the model sees it: the rest of what llama.cpp or llama-cpp-python would
fail over, or report as failures of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_cpp import llama_cpp as lib
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest

from mars_gguf.errors import MarsError

# Characters: at each token of a stream all beginnings of each are looked for at the end of it.
MAX_STOP = 256
MAX_BIASED = 256  # characters, of which each key is tokenized while all requests wait
# As the OpenAI API has them: more are megabytes a token, and hold the model while they are sorted.
MAX_TOP_LOGPROBS, MAX_LOGPROBS = 20, 5
# A factor of logits: if all that a grammar allows became -inf, llama.cpp would abort.
MAX_REPEAT_PENALTY = 100.0


class RequestError(MarsError):
    """A request that cannot be served as it is; ``status`` is the HTTP status, ``code`` the word
    that the OpenAI API has for it."""

    code: str | None = None

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def require_messages(messages: Sequence[Any]) -> None:
    """Raises RequestError for a chat message without content, unless it calls a tool."""
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
    """Raises RequestError if a request wants a tool called that it does not bring."""
    if not chosen_tools(body) <= {function["name"] for function in offered_tools(body)}:
        raise RequestError("tool_choice: names none of the tools of the request")


def require_free_reply(body: CreateChatCompletionRequest) -> None:
    """Raises RequestError for what lets a client write the beginning of a reply, so that it is no
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


def require_few_probabilities(body: CreateChatCompletionRequest | CreateCompletionRequest) -> None:
    """Raises RequestError for more probabilities of other tokens than the OpenAI API gives."""
    name, most = "top_logprobs", MAX_TOP_LOGPROBS
    if isinstance(body, CreateCompletionRequest):
        name, most = "logprobs", MAX_LOGPROBS
    if (found := getattr(body, name) or 0) > most:
        raise RequestError(f"{name}: found {found}, expected 0 to {most}")


def require_short_biases(bias: Mapping[str, float] | None) -> None:
    """Raises RequestError for a bias of a text that is much longer than a token."""
    for text in bias or ():
        if len(text) > MAX_BIASED:
            raise RequestError(
                f"logit_bias: found a key of {len(text)} characters, expected at most {MAX_BIASED}"
            )


def require_short_stops(stop: str | Sequence[str] | None) -> None:
    """Raises RequestError for a text to stop at that is longer than any marker."""
    for text in [stop] if isinstance(stop, str) else stop or ():
        if len(text) > MAX_STOP:
            raise RequestError(
                f"stop: found {len(text)} characters, expected at most {MAX_STOP} in each"
            )


def require_free_end(llama: Any, bias: Mapping[Any, float] | None) -> None:
    """Raises RequestError for a bias against a token that ends replies: the model would go on
    behind its refusal."""
    vocab = lib.llama_model_get_vocab(llama.model)
    for key, value in (bias or {}).items():
        token = str(key)
        known = token.isascii() and token.isdigit() and int(token) < llama.n_vocab()
        if known and value < 0 and lib.llama_vocab_is_eog(vocab, int(token)):
            raise RequestError(
                f"logit_bias: found {value:g} for {token}, which ends replies; expected 0 or more"
            )


def require_tokens(llama: Any, tokens: list[int]) -> None:
    """Raises RequestError unless all of ``tokens`` are in the vocabulary."""
    n_vocab = llama.n_vocab()
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise RequestError(f"tokens: found {token}, expected 0 to {n_vocab - 1}")
