"""What requests may hold: as in ``llama_cpp.server``, with films and a choice of vectors."""

from __future__ import annotations

from typing import Annotated, Literal

from llama_cpp import llama_types
from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest
from pydantic import BaseModel, ConfigDict, Field
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


class ChatRequest(CreateChatCompletionRequest):
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


class CompletionRequest(CreateCompletionRequest):
    mars: ClientControl | None = Field(default=None, exclude=True)
    repeat_penalty: float = REPEAT_PENALTY
