"""The requests: those of ``llama_cpp.server``, with films and a choice of vectors.

fields.json has every field that one may have, and what it may hold, as docs/SERVER.md does; no
other is taken. Those without ``taken`` have no effect, and are let be since clients that know
nothing of this server send them. Where a bound is not in the types here, it is in request_limits.py
or in runtime/limits.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from llama_cpp import llama_cpp as lib
from llama_cpp import llama_types
from llama_cpp.server.types import (
    CreateChatCompletionRequest,
    CreateCompletionRequest,
    CreateEmbeddingRequest,
)
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import TypedDict

from mars_gguf.server.http_errors import RequestError

# A factor of logits: if all that a grammar allows became -inf, llama.cpp would abort.
MAX_REPEAT_PENALTY = 100.0
Route = Literal["chat", "completion", "embedding"]
FIELDS: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("fields.json").read_text(encoding="utf-8")
)
KNOWN = {
    route: {name for row in FIELDS if route in row["routes"] for name in row["names"]}
    for route in get_args(Route)
}


class ClientControl(BaseModel):
    """The say that a request has in steering, if the operator lets it."""

    model_config = ConfigDict(extra="forbid")
    vector: str = Field(description="Id of a vector that the operator gave at start-up")


class VideoUrl(TypedDict):
    url: str


class FilmPart(TypedDict):
    """A film, as a file."""

    type: Literal["video_url"]
    video_url: str | VideoUrl


class FramesPart(TypedDict):
    """A film, as the URLs of pictures of its frames."""

    type: Literal["video"]
    video: Annotated[list[str], Field(min_length=1)]


class UserMessage(TypedDict):
    role: Literal["user"]
    content: (
        str
        | list[
            llama_types.ChatCompletionRequestMessageContentPartText
            | llama_types.ChatCompletionRequestMessageContentPartImage
            | FilmPart
            | FramesPart
        ]
        | None
    )


class KnownRequest(BaseModel):
    """A request of fields that are known. Null stands for the default, as in the OpenAI API."""

    route: ClassVar[Route]

    @model_validator(mode="before")
    @classmethod
    def require_known(cls, data: Any) -> Any:
        """Leaves out what is null. Raises RequestError for a field that is not known."""
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        for name in given:
            if name not in KNOWN[cls.route]:
                raise RequestError(
                    f"{name[:40]!r}: no field of {cls.route} requests that is known here"
                )
        if isinstance(messages := given.get("messages"), list):
            given["messages"] = [_without_nulls(message) for message in messages]
        return given


class SteeredRequest(KnownRequest):
    """A request for a steered reply."""

    mars: ClientControl | None = Field(default=None, exclude=True)
    repeat_penalty: float = Field(default=1.1, ge=0.0, le=MAX_REPEAT_PENALTY)


def _without_nulls(message: Any) -> Any:
    """A message without what is null, as the ``openai`` client writes out a reply, but its content:
    that says something."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None or key == "content"}


class ChatRequest(SteeredRequest, CreateChatCompletionRequest):
    """A request for a reply to messages."""

    route = "chat"
    messages: list[  # type: ignore[assignment]
        llama_types.ChatCompletionRequestSystemMessage
        | UserMessage
        | llama_types.ChatCompletionRequestAssistantMessage
        | llama_types.ChatCompletionRequestToolMessage
        | llama_types.ChatCompletionRequestFunctionMessage
    ] = Field(default=[], description="A list of messages to generate completions for.")
    max_completion_tokens: int | None = Field(default=None, exclude=True)

    @field_validator("response_format", mode="before")
    @classmethod
    def as_llama_cpp_python_has_it(cls, value: Any) -> Any:
        """A format of the OpenAI API's as one of llama-cpp-python's."""
        match value:
            case {"type": "json_schema", "json_schema": {"schema": schema}}:
                return {"type": "json_object", "schema": schema}
        return value

    @model_validator(mode="after")
    def require_content_and_tool(self) -> ChatRequest:
        """Raises RequestError for a message without content, unless it calls a tool, and for a tool
        that the request wants called and does not bring."""
        for n, message in enumerate(self.messages):
            calls = message.get("tool_calls") or message.get("function_call")
            if message.get("content") is None and not calls:
                raise RequestError(f"messages[{n}]: found no content, expected text or parts")
        if not self.chosen_tools <= {function["name"] for function in self.offered_tools}:
            raise RequestError("tool_choice: names none of the tools of the request")
        return self

    @property
    def offered_tools(self) -> list[Any]:
        """The functions that the request brings."""
        return [*(tool["function"] for tool in self.tools or []), *(self.functions or [])]

    @property
    def chosen_tools(self) -> set[str]:
        """The names of the functions that the request wants called."""
        chosen = set()
        if isinstance(self.tool_choice, dict):
            chosen.add(self.tool_choice["function"]["name"])
        if isinstance(self.function_call, dict):
            chosen.add(self.function_call["name"])
        return chosen

    def require_free_reply(self) -> None:
        """Raises RequestError for what lets a client write the beginning of a reply, so that it is
        no refusal whatever the state it comes from."""
        for name, given in (
            ("grammar", self.grammar is not None),
            ("logit_bias", bool(self.logit_bias)),
            ("response_format", (self.response_format or {}).get("type", "text") != "text"),
            ("tool_choice", isinstance(self.tool_choice, dict)),
            ("function_call", isinstance(self.function_call, dict)),
        ):
            if given:
                raise RequestError(
                    f"this server lets no request say how replies begin ({name})", 403
                )


class CompletionRequest(SteeredRequest, CreateCompletionRequest):
    """A request for the completion of a raw prompt."""

    route = "completion"


class EmbeddingRequest(KnownRequest, CreateEmbeddingRequest):
    """A request for the embeddings of texts."""

    route = "embedding"


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
