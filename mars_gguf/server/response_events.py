"""Replies in the form of the Responses API: a response, or the events of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from mars_gguf.server.exchange import current_exchange
from mars_gguf.server.response_requests import ResponseRequest
from mars_gguf.server.streaming import Event, dumps

Told = tuple[str, dict[str, Any]]  # type of an event, and what it says; written out at once


class ResponseForm:
    """Makes the response to ``body`` of a chat completion or its chunks, as they come."""

    def __init__(self, body: ResponseRequest) -> None:
        self.body, self.id, self.created_at = body, f"resp_{uuid4().hex}", time.time()
        self.output: list[dict[str, Any]] = []
        self._index: dict[object, int] = {}  # in the output: of the text, and of calls of tools
        self._last: dict[str, Any] = {}  # the chunk that came last
        self._n_events = 0

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """The response of a chat completion."""
        choice = completion["choices"][0]
        chunk = completion | {"choices": [choice | {"delta": choice["message"]}]}
        *_, (_, last) = (*self._begun(chunk), *self._ended())
        response: dict[str, Any] = last["response"]
        return response

    def events(self, chunk: dict[str, Any]) -> Iterator[Event]:
        """The events that a chunk of a chat completion brings."""
        return (self._event(*told) for told in self._begun(chunk))

    def end(self) -> Iterator[Event]:
        """The events behind the last chunk, each of which repeats the whole text."""
        return (self._event(*told) for told in self._ended())

    def failure(self, content: dict[str, Any]) -> Event:
        """The event of an error."""
        error = content["error"]
        return self._event("error", {k: error[k] for k in ("code", "message", "param")} | content)

    def _event(self, kind: str, said: dict[str, Any]) -> Event:
        numbered = {"type": kind, "sequence_number": self._n_events, **said}
        self._n_events += 1
        return {"event": kind, "data": dumps(numbered)}

    def _begun(self, chunk: dict[str, Any]) -> Iterator[Told]:
        first, self._last = not self._last, chunk
        if first:
            yield "response.created", {"response": self._response("in_progress")}
            yield "response.in_progress", {"response": self._response("in_progress")}
        choice = chunk["choices"][0]
        if text := choice["delta"].get("content"):
            yield from self._text(text, (choice.get("logprobs") or {}).get("content") or [])
        for n, call in enumerate(choice["delta"].get("tool_calls") or []):
            yield from self._call(call.get("index", n), call)

    def _text(self, text: str, tokens: list[Any]) -> Iterator[Told]:
        item = {"id": f"msg_{uuid4().hex}", "type": "message", "role": "assistant", "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        added = [*self._added("text", item)]
        place, content = self._place("text"), self.output[self._index["text"]]["content"]
        if added:
            yield from added
            yield "response.content_part.added", {**place, "part": part}
            content.append(part)
        content[0]["text"] += text
        content[0]["logprobs"] += tokens
        yield "response.output_text.delta", {**place, "delta": text, "logprobs": tokens}

    def _call(self, key: int, call: dict[str, Any]) -> Iterator[Told]:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        item = {"id": f"fc_{uuid4().hex}", "type": "function_call", "call_id": call.get("id")}
        yield from self._added(key, item | {"name": name, "arguments": ""})
        self.output[self._index[key]]["arguments"] += arguments
        yield "response.function_call_arguments.delta", {**self._place(key), "delta": arguments}

    def _added(self, key: object, item: dict[str, Any]) -> Iterator[Told]:
        """Adds ``item`` to the output unless there is one of that key."""
        if key not in self._index:
            self._index[key] = len(self.output)
            self.output.append(item | {"status": "in_progress"})
            yield (
                "response.output_item.added",
                {"output_index": self._index[key], "item": self.output[-1]},
            )

    def _place(self, key: object) -> dict[str, Any]:
        index = self._index[key]
        place = {"item_id": self.output[index]["id"], "output_index": index}
        return place | ({"content_index": 0} if key == "text" else {})

    def _ended(self) -> Iterator[Told]:
        reason = self._last["choices"][0]["finish_reason"]
        status = "incomplete" if reason == "length" else "completed"
        for key, index in self._index.items():
            item, place = self.output[index], self._place(key)
            item["status"] = status
            if key == "text":
                [part] = item["content"]
                said = {"text": part["text"], "logprobs": part["logprobs"]}
                yield "response.output_text.done", {**place, **said}
                yield "response.content_part.done", {**place, "part": part}
            else:
                said = {"name": item["name"], "arguments": item["arguments"]}
                yield "response.function_call_arguments.done", {**place, **said}
            yield "response.output_item.done", {"output_index": index, "item": item}
        told = {"usage": self._usage(reason), "mars": self._last.get("mars")}
        yield f"response.{status}", {"response": self._response(status) | told}

    def _usage(self, reason: str) -> dict[str, Any]:
        current = current_exchange()
        told = self._last.get("usage") or {  # a stream says nothing of it
            "prompt_tokens": current.prompt_tokens,
            "completion_tokens": current.tokens - (reason != "length"),  # the one that ended it
        }
        asked, said = told["prompt_tokens"], told["completion_tokens"]
        return {
            "input_tokens": asked, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + said,
        }  # fmt: skip

    def _response(self, status: str) -> dict[str, Any]:
        body, done = self.body, time.time() if status == "completed" else None
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id, "object": "response", "model": self._last["model"], "status": status,
            "created_at": self.created_at, "completed_at": done,
            "error": None, "incomplete_details": cut, "output": self.output, "usage": None,
            "instructions": None, "metadata": {}, "previous_response_id": None, "store": False,
            "background": False, "parallel_tool_calls": False, "truncation": "disabled",
            "temperature": body.temperature, "top_p": body.top_p, "tools": body.tools,
            "tool_choice": body.tool_choice, "max_output_tokens": body.max_output_tokens,
            "text": body.text or {"format": {"type": "text"}},
        }  # fmt: skip
