"""The requests of the Responses API, made into chat requests: there is one way to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from typing_extensions import NotRequired, TypedDict

from mars_gguf.server.checks import RequestError
from mars_gguf.server.request_types import ChatRequest, ClientControl, KnownRequest

LOGPROBS = "message.output_text.logprobs"  # of include
_SAME = {"model", "temperature", "top_p", "top_logprobs", "stream", "mars"}


class FunctionTool(TypedDict):
    type: Literal["function"]
    name: str
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]


class NamedTool(TypedDict):
    type: Literal["function"]
    name: str


class TextFormat(TypedDict):
    type: Literal["text", "json_object", "json_schema"]
    schema: NotRequired[dict[str, Any]]


class TextSettings(TypedDict):
    format: NotRequired[TextFormat | None]


class ResponseRequest(KnownRequest):
    """A request for a response to an input. Nothing is kept for a later one."""

    route = "response"
    model: str | None = None
    input: str | list[dict[str, Any]] = Field(description="A text, or messages and calls of tools.")
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool = False
    tools: list[FunctionTool] = Field([])
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    text: TextSettings = Field(TextSettings())
    include: list[str] = Field([])
    truncation: Literal["disabled"] = "disabled"
    store: object = None
    background: object = None
    previous_response_id: object = None
    conversation: object = None
    prompt: object = None
    mars: ClientControl | None = None

    @field_validator("store", "background", "previous_response_id", "conversation", "prompt")
    @classmethod
    def require_nothing_kept(cls, value: object, info: ValidationInfo) -> object:
        """Raises RequestError for what only a server can do that keeps something."""
        if value is not False:
            raise RequestError(
                f"{info.field_name}: this server keeps no response, conversation or prompt. Send "
                "the whole conversation as input, and leave it out."
            )
        return value


def chat_request(body: ResponseRequest) -> ChatRequest:
    """The chat request that asks for the same. Raises RequestError, and RequestValidationError for
    values that no chat request may have."""
    given = {name: getattr(body, name) for name in _SAME & body.model_fields_set}
    given |= {"messages": messages_of(body), "max_tokens": body.max_output_tokens}
    if body.tools:
        given["tools"] = [_tool(tool) for tool in body.tools]
    if isinstance(body.tool_choice, str):
        given["tool_choice"] = body.tool_choice
    else:
        given["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice["name"]}}
    if form := body.text.get("format"):
        given["response_format"] = {"type": form["type"], "json_schema": form}
    given["logprobs"] = LOGPROBS in body.include
    try:
        return ChatRequest(**given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _tool(tool: FunctionTool) -> dict[str, Any]:
    function = {k: v for k, v in tool.items() if v is not None and k != "type"}
    return {"type": "function", "function": {"parameters": {"type": "object"}} | function}


def messages_of(body: ResponseRequest) -> list[dict[str, Any]]:
    """The messages of a chat with the instructions and the input. Raises RequestError."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    items = body.input
    for n, item in enumerate([{"content": items}] if isinstance(items, str) else items):
        message = _message(item, f"input[{n}]")
        last: dict[str, Any] = messages[-1] if messages else {"role": None}
        if message["role"] == last["role"] == "system":  # most templates take one, at the beginning
            last["content"] += "\n\n" + message["content"]
        elif message["role"] == last["role"] == "assistant" and "tool_calls" in message:
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    """The message of a chat that says what an item of an input does."""
    match item:
        case {
            "type": "function_call",
            "call_id": str(id),
            "name": str(name),
            "arguments": str(said),
        }:
            call = {"id": id, "type": "function", "function": {"name": name, "arguments": said}}
            return {"role": "assistant", "tool_calls": [call]}
        case {
            "type": "function_call_output",
            "call_id": str(id),
            "output": str() | list() as output,
        }:
            return {"role": "tool", "tool_call_id": id, "content": _text(output, where)}
        case {"content": str() | list() as content} if item.get("type", "message") == "message":
            role = item.get("role", "user")
            if role in ("system", "developer", "assistant"):
                role = "system" if role == "developer" else role
                return {"role": role, "content": _text(content, where)}
            if role == "user" and isinstance(content, list):
                content = [_part(part, where) for part in content]
            if role == "user":
                return {"role": role, "content": content}
    raise RequestError(
        f"{where}: expected a message of a user, assistant, system or developer, a function_call "
        "or a function_call_output"
    )


def _part(part: Any, where: str) -> dict[str, Any]:
    match part:
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "input_image"}:
            raise RequestError(f"{where}: an input_image needs image_url; no files are kept here")
    return {"type": "text", "text": _text([part], where)}


def _text(content: str | Sequence[Any], where: str) -> str:
    """The text of parts that hold nothing else."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        match part:
            case {"type": "input_text" | "output_text", "text": str(text)}:
                texts.append(text)
            case {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case _:
                raise RequestError(
                    f"{where}: found a part of another kind than input_text, output_text and "
                    "refusal, or, of a user, input_image"
                )
    return "".join(texts)
