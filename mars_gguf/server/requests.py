"""What requests may hold: as in ``llama_cpp.server``, with films and a choice of vectors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from llama_cpp import llama_types
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from mars_gguf.server.checks import MAX_REPEAT_PENALTY

REPEAT_PENALTY = Field(default=1.1, ge=0.0, le=MAX_REPEAT_PENALTY)


class ClientControl(BaseModel):
    """What a request may say of steering, if the operator lets it."""

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


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` without those that are null: in the OpenAI API that means the default."""
    return {name: value for name, value in fields.items() if value is not None}


class WithNulls(BaseModel):
    """A request in which null stands for the default."""

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = _given(data)
        if isinstance(messages := given.get("messages"), list):
            given["messages"] = [_without_nulls(message) for message in messages]
        return given


def _without_nulls(message: Any) -> Any:
    """A message without what is null, as the ``openai`` client writes out a reply, but its content:
    that says something."""
    if not isinstance(message, dict):
        return message
    return _given(message) | {name: message[name] for name in ("content",) if name in message}


class ChatRequest(WithNulls, CreateChatCompletionRequest):
    messages: list[  # type: ignore[assignment]
        llama_types.ChatCompletionRequestSystemMessage
        | UserMessage
        | llama_types.ChatCompletionRequestAssistantMessage
        | llama_types.ChatCompletionRequestToolMessage
        | llama_types.ChatCompletionRequestFunctionMessage
    ] = Field(default=[], description="A list of messages to generate completions for.")
    mars: ClientControl | None = Field(default=None, exclude=True)
    max_completion_tokens: int | None = Field(default=None, exclude=True)
    repeat_penalty: float = REPEAT_PENALTY


class CompletionRequest(WithNulls, CreateCompletionRequest):
    mars: ClientControl | None = Field(default=None, exclude=True)
    repeat_penalty: float = REPEAT_PENALTY
