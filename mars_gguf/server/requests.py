"""What requests may hold: as in ``llama_cpp.server``, and a choice of vectors."""

from __future__ import annotations

from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest
from pydantic import BaseModel, ConfigDict, Field

from mars_gguf.server.checks import MAX_REPEAT_PENALTY

REPEAT_PENALTY = Field(default=1.1, ge=0.0, le=MAX_REPEAT_PENALTY)


class ClientControl(BaseModel):
    """What a request may say of steering, if the operator lets it."""

    model_config = ConfigDict(extra="forbid")
    vector: str = Field(description="Id of a vector that the operator gave at start-up")


class ChatRequest(CreateChatCompletionRequest):
    mars: ClientControl | None = Field(default=None, exclude=True)
    max_completion_tokens: int | None = Field(default=None, exclude=True)
    repeat_penalty: float = REPEAT_PENALTY


class CompletionRequest(CreateCompletionRequest):
    mars: ClientControl | None = Field(default=None, exclude=True)
    repeat_penalty: float = REPEAT_PENALTY
