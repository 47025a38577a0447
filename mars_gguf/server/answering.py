"""Lets one request after another have its reply, whole or as a stream, from one thread."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import numpy as np
from anyio.lowlevel import checkpoint
from fastapi import Request, Response
from llama_cpp import LogitsProcessorList, MinTokensLogitsProcessor
from llama_cpp.server.app import prepare_request_resources
from numpy.typing import NDArray
from sse_starlette import EventSourceResponse

from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import ClientGone, RequestError, describe
from mars_gguf.server.piecewise import bytes_a_token, row_by_row
from mars_gguf.server.request_limits import most, require
from mars_gguf.server.request_types import ChatRequest, CompletionRequest, require_free_end
from mars_gguf.server.sharing import Line

T = TypeVar("T")
Event = dict[str, str]  # its data

# Of a request, and not for the model. Messages may hold the pixels of pictures, which are no JSON.
NOT_ARGUMENTS = {"n", "best_of", "logit_bias_type", "user", "min_tokens", "messages"}
_model_thread = ThreadPoolExecutor(1, "model")
_line = Line()


class _Processors(LogitsProcessorList):  # type: ignore[misc]
    """A list that llama-cpp-python adds biases to: it goes on with what that returns."""

    def extend(self, more: Any) -> _Processors:
        super().extend(more)
        return self


class LongerUnlessSteered(MinTokensLogitsProcessor):  # type: ignore[misc]
    """Forbids that a reply ends before ``min_tokens``, until the gate has opened: what was steered
    into a refusal may end where the model ends it."""

    def __init__(self, llama: SteeredLlama, min_tokens: int) -> None:
        super().__init__(min_tokens, llama.token_eos())
        self.llama = llama

    def __call__(self, input_ids: NDArray[np.intc], scores: NDArray[np.single]) -> Any:
        steering = self.llama.last_steering
        if steering is not None and steering.alpha > 0:
            return scores
        return super().__call__(input_ids, scores)


@asynccontextmanager
async def _turn_of(request: Request) -> AsyncIterator[Exchange]:
    """Context manager: within it, a request has the model, until the deadline that begins with it.
    Raises RequestError (503) if too many wait for that, ClientGone if nobody waits by then."""
    current: Exchange = request.state.exchange
    async with _line.turn(current, most("waiting")):
        await current.until_turn.aclose()
        current.begin(request.app.state.settings, partial(_line.others_wait, current.client))
        current.require_wanted()
        with row_by_row(current):
            yield current


async def in_turn(request: Request, call: Callable[[], T]) -> T:
    """Runs ``call`` in the models' thread when the requests before are answered. Raises ClientGone
    if nobody waits for it by then."""
    async with _turn_of(request):
        return await _in_model_thread(call)


async def _in_model_thread(call: Callable[..., T], *args: Any) -> T:
    """Runs ``call`` in the one thread that runs models, and waits for its end even if cancelled.

    In changing threads llama.cpp leaves a team of OpenMP threads, and malloc an arena, behind in
    each.
    """
    with anyio.CancelScope(shield=True):
        result = await asyncio.get_running_loop().run_in_executor(_model_thread, call, *args)
    return result


async def reply(request: Request, body: ChatRequest | CompletionRequest, method: str) -> Response:
    """Answers a request by what ``method`` of its model makes of it."""
    current: Exchange = request.state.exchange
    arguments = body.model_dump(exclude=NOT_ARGUMENTS)
    if isinstance(body, ChatRequest):
        arguments["messages"] = body.messages

    def begin() -> Any:
        model = partial(request.app.state.models, current)
        llama: Any = prepare_request_resources(body, model, body.model, arguments)
        require_free_end(llama, arguments["logit_bias"])
        if body.min_tokens:
            longer = LongerUnlessSteered(llama, body.min_tokens)
            arguments["logits_processor"] = _Processors([longer])
        return getattr(llama, method)(**arguments)

    if not body.stream:
        current.bytes_left, current.bytes_a_token = most("reply"), bytes_a_token(body)
        content = dumps(await in_turn(request, begin))
        require("reply", len(content))
        return Response(content, media_type="application/json")
    outbox = _Outbox()
    return EventSourceResponse(
        outbox.events(),
        data_sender_callable=partial(_publish, outbox, begin, request),
        sep="\n",
        ping_message_factory=bytes if request.app.state.settings.disable_ping_events else None,  # type: ignore
    )


class _Outbox:
    """The events of a reply that its client has yet to take: the model waits for no socket."""

    def __init__(self) -> None:
        self.held, self.begun = 0, False
        self.channel, self._taken = anyio.create_memory_object_stream[Event](math.inf)

    def put(self, chunk: dict[str, Any]) -> None:
        """Adds a chunk. Raises RequestError where the client leaves too much."""
        data = dumps(chunk)
        require("unread", self.held + len(data))
        self.send(data)

    def send(self, data: str) -> None:
        """Adds what is sent whatever the client leaves. Raises ClientGone."""
        self.held += len(data)
        try:
            self.channel.send_nowait({"data": data})
        except anyio.BrokenResourceError as error:  # `events` has ended
            raise ClientGone from error
        self.begun = True

    async def events(self) -> AsyncIterator[Event]:
        """The events, as the client takes them."""
        with self._taken:
            async for event in self._taken:
                self.held -= len(event["data"])
                yield event


async def _publish(outbox: _Outbox, begin: Callable[[], Any], request: Request) -> None:
    """Puts the chunks of a reply into ``outbox``. Leaves errors to the middleware, or puts them
    into the stream if that has begun."""
    current: Exchange = request.state.exchange
    interruptible = request.app.state.settings.interrupt_requests
    with outbox.channel:
        try:
            async with _turn_of(request):
                chunks = await _in_model_thread(begin)
                try:
                    await _put_all(chunks, outbox, current, interruptible=interruptible)
                finally:  # collected later, it would interfere with the next reply
                    chunks.close()
            outbox.send("[DONE]")
        except Exception as error:
            current.error = error
            if (outbox.begun or current.responding) and not isinstance(error, ClientGone):
                with suppress(ClientGone):
                    outbox.send(dumps(describe(error)[1]))


async def _put_all(
    chunks: Iterator[Any], outbox: _Outbox, current: Exchange, *, interruptible: bool
) -> None:
    """Puts ``chunks`` into ``outbox``, and an end after those of a reply that is cut short, by the
    deadline or, if ``interruptible``, by the next request."""
    chunk: dict[str, Any] | None = None
    try:
        while (following := await _in_model_thread(next, chunks, None)) is not None:
            outbox.put(chunk := following)
            await checkpoint()  # where a client that has left ends this
            if interruptible and len(_line):
                break
        else:
            return
    except RequestError as error:
        if chunk is None or error.limit not in ("reply_seconds", "turn_seconds"):
            raise
    assert chunk is not None
    outbox.put(_cut_short(chunk, current))


def _cut_short(chunk: dict[str, Any], current: Exchange) -> dict[str, Any]:
    """The chunk that follows ``chunk`` as the last one of a reply that is not finished."""
    end = {"index": 0, "logprobs": None, "finish_reason": "length"}
    if chunk["object"] != "chat.completion.chunk":
        return chunk | {"choices": [end | {"text": ""}]}
    mars = current.steering.report() if current.steering is not None else None
    return chunk | {"choices": [end | {"delta": {}}], "mars": mars}


def dumps(content: Any) -> str:
    """As JSON."""
    return json.dumps(content, default=lambda number: number.item())  # logprobs are numpy's numbers
