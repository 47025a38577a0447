"""Lets one request after another have its reply, whole or as a stream, from one thread."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import anyio
import numpy as np
from anyio.streams.memory import MemoryObjectSendStream
from fastapi import Request, Response
from llama_cpp import LogitsProcessorList, MinTokensLogitsProcessor
from numpy.typing import NDArray
from sse_starlette import EventSourceResponse

from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.checks import require_free_end
from mars_gguf.server.exchange import ClientGone, Exchange, current_exchange
from mars_gguf.server.http_errors import describe
from mars_gguf.server.internals import prepare_request_resources
from mars_gguf.server.request_types import ChatRequest, CompletionRequest

T = TypeVar("T")

# Of a request, and not for the model.
NOT_ARGUMENTS = {"n", "best_of", "logit_bias_type", "user", "min_tokens"}
_model_thread = ThreadPoolExecutor(1, "model")
_turn = anyio.Lock()


class _LongerUnlessSteered(MinTokensLogitsProcessor):  # type: ignore[misc]
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


async def in_turn(call: Callable[[], T]) -> T:
    """Runs ``call`` in the models' thread when the requests before are answered. Raises ClientGone
    if nobody waits for it by then."""
    async with _turn:
        current_exchange().require_client()
        return await _in_model_thread(call)


async def _in_model_thread(call: Callable[..., T], *args: Any) -> T:
    """Runs ``call`` in the one thread that runs models, and waits for its end even if cancelled.

    In changing threads llama.cpp leaves a team of OpenMP threads, and malloc an arena, behind in
    each.
    """
    work = partial(copy_context().run, call, *args)
    with anyio.CancelScope(shield=True):
        result = await asyncio.get_running_loop().run_in_executor(_model_thread, work)
    return result


async def reply(request: Request, body: ChatRequest | CompletionRequest, method: str) -> Response:
    """Answers a request by what ``method`` of its model makes of it."""
    state = request.app.state
    arguments = body.model_dump(exclude=NOT_ARGUMENTS)

    def begin() -> Any:
        llama: Any = prepare_request_resources(body, state.models, body.model, arguments)
        require_free_end(llama, arguments["logit_bias"])
        if body.min_tokens:
            longer = _LongerUnlessSteered(llama, body.min_tokens)
            arguments["logits_processor"] = LogitsProcessorList([longer])
        return getattr(llama, method)(**arguments)

    if not body.stream:
        return Response(_dumps(await in_turn(begin)), media_type="application/json")
    channel, received = anyio.create_memory_object_stream[dict[str, str]](10)
    return EventSourceResponse(
        received,
        data_sender_callable=partial(_publish, channel, begin, state.settings.interrupt_requests),
        sep="\n",
        ping_message_factory=bytes if state.settings.disable_ping_events else None,  # type: ignore
    )


async def _publish(
    channel: MemoryObjectSendStream[dict[str, str]],
    begin: Callable[[], Any],
    interruptible: bool,
) -> None:
    """Sends the chunks of a reply into ``channel``.

    Ends the reply before it frees the model, whatever happens: a generator that is collected later
    would interfere with the next reply. Leaves errors to the middleware, or puts them into the
    stream if that has begun.
    """
    current, sent = current_exchange(), False

    async def push(data: str) -> None:
        await channel.send({"data": data})

    async with channel, _turn:
        try:
            current.require_client()
            chunks = await _in_model_thread(begin)
            try:
                while (chunk := await _in_model_thread(next, chunks, None)) is not None:
                    await push(_dumps(chunk))
                    sent = True
                    if interruptible and _turn.statistics().tasks_waiting:
                        await push(_dumps(_cut_short(chunk, current)))
                        break
            finally:
                chunks.close()
            await push("[DONE]")
        except Exception as error:
            current.error = error
            if (sent or current.responding) and not isinstance(error, ClientGone):
                await push(json.dumps(describe(error)[1]))


def _cut_short(chunk: dict[str, Any], current: Exchange) -> dict[str, Any]:
    """The chunk that follows ``chunk`` as the last one of a reply that is not finished."""
    end = {"index": 0, "logprobs": None, "finish_reason": "length"}
    if chunk["object"] != "chat.completion.chunk":
        return chunk | {"choices": [end | {"text": ""}]}
    mars = current.steering.report() if current.steering is not None else None
    return chunk | {"choices": [end | {"delta": {}}], "mars": mars}


def _dumps(content: Any) -> str:
    return json.dumps(content, default=lambda number: number.item())  # logprobs are numpy's numbers
