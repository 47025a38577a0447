"""The application: ``llama_cpp.server``'s, with our routes before its own, and around them one
middleware that answers errors, notices clients that leave, logs and counts."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from llama_cpp.server.types import (
    CreateEmbeddingRequest,
    DetokenizeInputRequest,
    TokenizeInputRequest,
)
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_context import context
from starlette_context.errors import WrongUUIDError
from starlette_context.header_keys import HeaderKeys
from starlette_context.plugins import RequestIdPlugin

from mars_gguf.console import printable
from mars_gguf.errors import MarsError, PromptError, SteeringError
from mars_gguf.server import checks
from mars_gguf.server.access import Access
from mars_gguf.server.bodies import SMALL, Intake, require_modest
from mars_gguf.server.checks import RequestError
from mars_gguf.server.compat import RouteErrorHandler
from mars_gguf.server.compat import app as upstream
from mars_gguf.server.connections import STALLED
from mars_gguf.server.exchange import ClientGone, Exchange, exchange
from mars_gguf.server.media import MEDIA, inline_media, media_parts
from mars_gguf.server.model import ServedLlama, SteeredProxy
from mars_gguf.server.requests import ChatRequest, CompletionRequest
from mars_gguf.server.schemas import require_schemas
from mars_gguf.server.settings import (
    DEFAULT_VECTOR,
    RENDERED_FORMATS,
    ModelSettings,
    ServerSettings,
)

log = logging.getLogger("mars_gguf.server")

TENTHS = [n / 10 for n in range(11)]
SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
REQUESTS = Counter("mars_requests", "Requests answered", ["path", "status"])
STEERED = Counter("mars_steered_requests", "Requests steered (alpha > 0)", ["modality"])
GATE = Histogram("mars_gate", "Refusal gate s of replies", ["modality"], buckets=TENTHS)
FIRST_TOKEN = Histogram(
    "mars_first_token_seconds", "From request to first token, waiting included", buckets=SECONDS
)


def create_app(server: ServerSettings, models: list[ModelSettings]) -> FastAPI:
    """The application; loads the models. Raises MarsError for one that does not fit its vector."""
    upstream.LlamaProxy = SteeredProxy
    upstream.get_event_publisher = publish
    upstream.run_in_threadpool = in_model_thread
    upstream.RequestIdPlugin = RequestId
    # Its own would print what it caught, prompts included.
    RouteErrorHandler.get_route_handler = APIRoute.get_route_handler
    app: FastAPI = upstream.create_app(server_settings=server, model_settings=models)
    app.title, app.state.settings, app.state.proxy = "mars-gguf", server, upstream._llama_proxy
    app.router.routes[:0] = router.routes  # the first that matches a path serves it
    app.add_exception_handler(RequestValidationError, refuse)
    app.add_exception_handler(HTTPException, refuse_route)
    # Its own lets the page of any site ask.
    installed: list[Any] = app.user_middleware
    app.user_middleware = [m for m in installed if m.cls is not CORSMiddleware]
    if origins := server.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    # Innermost, so that errors get the headers of the others (CORS, request id) too.
    app.user_middleware.append(Middleware(ExchangeMiddleware, settings=server))
    return app


# Routes ------------------------------------------------------------------------------------------

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None, tags=["OpenAI V1"])
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Chat completion, steered. ``mars`` in the reply says what steering did."""
    current = _begin(request, body, body.messages)
    if request.app.state.settings.chat_only:
        checks.require_free_reply(body)
    if body.max_tokens is None:
        body.max_tokens = body.max_completion_tokens
    checks.require_messages(body.messages)
    checks.require_tool(body)
    settings = request.app.state.proxy.settings(body.model)
    # Handlers that only llama-cpp-python has make a grammar of any tool.
    every_tool = settings.chat_format not in RENDERED_FORMATS
    await to_thread.run_sync(partial(require_schemas, body, every_tool=every_tool))
    if next(media_parts(body.messages), None) is not None:
        if not settings.clip_model_path:
            raise RequestError("this model sees no pictures: it is served without an mmproj")
        await inline_media(body.messages, request.app.state.settings)
        current.require_client()
    return _as_json(await upstream.create_chat_completion(request=request, body=body))


@router.post("/v1/engines/copilot-codex/completions", response_model=None, include_in_schema=False)
async def copilot_completions(request: Request, body: CompletionRequest) -> Response:
    """Completion by the model of that alias, or the first, whichever the request names."""
    body.model = "copilot-codex"
    return await completions(request, body)


@router.post("/v1/completions", response_model=None, tags=["OpenAI V1"])
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Completion of a raw prompt, steered."""
    if request.app.state.settings.chat_only:
        raise RequestError("this server serves chat only, no completions of raw prompts", 403)
    if isinstance(body.prompt, list) and len(body.prompt) > 1:
        raise RequestError(f"prompt: found {len(body.prompt)} prompts, expected one a request")
    _begin(request, body, body.prompt)
    return _as_json(await upstream.create_completion(request=request, body=body))


def _as_json(reply: Any) -> Response:
    if isinstance(reply, Response):  # a stream
        return reply
    return Response(_dumps(reply), media_type="application/json")


def _dumps(reply: Any) -> str:
    return json.dumps(reply, default=lambda number: number.item())  # logprobs are numpy's numbers


def _begin(request: Request, body: ChatRequest | CompletionRequest, prompt: object) -> Exchange:
    current = exchange.get()
    assert current is not None
    state = request.app.state
    if (body.n or 1) > 1:
        raise RequestError(f"n: found {body.n}, expected 1 reply a request")
    checks.require_short_biases(body.logit_bias)
    if state.settings.log_prompts:
        current.prompt = _without_pictures(prompt)
    if body.mars is not None:
        if not state.settings.allow_client_control:
            raise RequestError("requests may not control steering on this server ('mars')", 403)
        ids = state.proxy.vectors[state.proxy.settings(body.model).model_alias]
        if body.mars.vector not in ids:
            raise RequestError(f"mars.vector: no such id, expected one of {', '.join(ids)}")
        current.vector = body.mars.vector
    return current


def _without_pictures(prompt: object) -> object:
    if isinstance(prompt, list):
        return [_without_pictures(item) for item in prompt]
    if isinstance(prompt, dict):
        return {k: "..." if k in MEDIA else _without_pictures(v) for k, v in prompt.items()}
    return prompt


@router.post("/v1/embeddings", tags=["OpenAI V1"])
async def embeddings(request: Request, body: CreateEmbeddingRequest) -> dict[str, Any]:
    """Embeddings, of a model that is served with ``embedding``."""
    if not request.app.state.proxy.settings(body.model).embedding:
        raise RequestError("this model gives no embeddings: it is served without 'embedding'")
    result: dict[str, Any] = await _with_model(
        body.model, lambda llama: llama.create_embedding(body.input, body.model)
    )
    return result


@router.post("/extras/tokenize", tags=["Extras"])
async def tokenize(body: TokenizeInputRequest) -> dict[str, list[int]]:
    """Tokens of a text, which may be as long as the context."""
    return {"tokens": await _tokens(body)}


@router.post("/extras/tokenize/count", tags=["Extras"])
async def count_tokens(body: TokenizeInputRequest) -> dict[str, int]:
    """How many tokens a text has, which may be as long as the context."""
    return {"count": len(await _tokens(body))}


@router.post("/extras/detokenize", tags=["Extras"])
async def detokenize(body: DetokenizeInputRequest) -> dict[str, str]:
    """Text of tokens, which may end within a character."""

    def text(llama: ServedLlama) -> str:
        checks.require_tokens(llama, body.tokens)
        return llama.text_of(body.tokens).decode(errors="replace")

    return {"text": await _with_model(body.model, text)}


async def _tokens(body: TokenizeInputRequest) -> list[int]:
    tokens: list[int] = await _with_model(
        body.model, lambda llama: llama.tokenize(body.input.encode(), special=True)
    )
    return tokens


async def _with_model(model: str | None, call: Callable[[ServedLlama], Any]) -> Any:
    """What ``call`` makes of the model, in the model's thread and when its turn has come."""
    current = exchange.get()
    assert current is not None
    async with asynccontextmanager(upstream.get_llama_proxy)() as proxy:
        current.require_client()
        return await in_model_thread(lambda: call(proxy(model)))


@router.get("/v1/models", tags=["OpenAI V1"])
async def models(request: Request) -> dict[str, Any]:
    """The models, and by which vector each is steered."""
    state = request.app.state
    data = []
    for alias, vectors in state.proxy.vectors.items():
        described = {
            id: {
                "name": v.name,
                "sha256": v.sha256,
                "layer": v.vector.layer,
                "modalities": v.vector.modalities,
            }
            for id, v in vectors.items()
        }
        mars: dict[str, Any] = {"steered": True, "vector": described[DEFAULT_VECTOR]}
        if state.settings.allow_client_control:
            mars["vectors"] = described
        data.append(
            {"id": alias, "object": "model", "created": 0, "owned_by": "me", "permissions": []}
            | {"mars": mars}
        )
    return {"object": "list", "data": data}


@router.get("/metrics", tags=["Extras"])
async def metrics() -> Response:
    """Counts in Prometheus text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


# Replies -----------------------------------------------------------------------------------------

_model_thread = ThreadPoolExecutor(1, "model")


async def in_model_thread(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Run ``call`` in the one thread that runs models, and wait for its end even if cancelled.
    ``llama_cpp.server.app`` is given this in place of its ``run_in_threadpool``.

    In changing threads llama.cpp leaves a team of OpenMP threads, and malloc an arena, behind in
    each.
    """
    work = partial(copy_context().run, call, *args, **kwargs)
    with anyio.CancelScope(shield=True):
        return await asyncio.get_running_loop().run_in_executor(_model_thread, work)


async def publish(
    request: Request,
    inner_send_chan: Any,
    body: Any,
    body_model: str | None,
    llama_call: Any,
    kwargs: dict[str, Any],
) -> None:
    """Send the chunks of a reply. ``llama_cpp.server.app`` is given this in place of its
    ``get_event_publisher``.

    Unlike that, this ends the reply before it frees the model, whatever happens (a generator that
    is collected later would interfere with the next reply), and leaves errors to the middleware,
    or puts them into the stream if that has begun.
    """
    current = exchange.get()
    assert current is not None
    interruptible = request.app.state.settings.interrupt_requests
    sent = False

    async def push(data: str) -> None:
        with anyio.move_on_after(STALLED):
            await inner_send_chan.send({"data": data})
            return
        raise ClientGone

    async with inner_send_chan, asynccontextmanager(upstream.get_llama_proxy)() as proxy:
        try:
            current.require_client()
            llama = upstream.prepare_request_resources(body, proxy, body_model, kwargs)
            chunks = await in_model_thread(llama_call, llama, **kwargs)
            try:
                while (chunk := await in_model_thread(next, chunks, None)) is not None:
                    await push(_dumps(chunk))
                    sent = True
                    if interruptible and upstream.llama_outer_lock.locked():
                        await push(_dumps(_cut_short(chunk, current)))
                        break
            finally:
                chunks.close()
            await push("[DONE]")
        except Exception as error:
            current.error = error
            if (sent or current.responding) and not isinstance(error, ClientGone):
                with suppress(ClientGone):
                    await push(json.dumps(describe(error)[1]))


def _cut_short(chunk: dict[str, Any], current: Exchange) -> dict[str, Any]:
    """What follows ``chunk`` as the last one of a reply that is not finished."""
    end = {"index": 0, "logprobs": None, "finish_reason": "length"}
    if chunk["object"] != "chat.completion.chunk":
        return chunk | {"choices": [end | {"text": ""}]}
    mars = current.steering.report() if current.steering is not None else None
    return chunk | {"choices": [end | {"delta": {}}], "mars": mars}


# Around every request ----------------------------------------------------------------------------

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "5"}}


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body, in the form of the OpenAI API, of an error."""
    status, kind, code = 500, "internal_server_error", None
    message = str(error) or type(error).__name__
    if isinstance(error, RequestError):
        status, kind = error.status, kind if error.status >= 500 else "invalid_request_error"
    elif isinstance(error, PromptError):  # may quote the request, as it came
        message = printable(message)[:500]
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, ClientGone):
        status, kind = 499, "client_gone"
    elif isinstance(error, UnicodeEncodeError):
        message = "the request holds half of a surrogate pair (\\ud800 to \\udfff): no text"
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, RecursionError):
        message, status, kind = "the request is nested too deeply", 400, "invalid_request_error"
    elif isinstance(error, OSError):
        message = "a file or connection of the server failed"  # which one is not for clients
    elif isinstance(error, SteeringError):
        code = "steering_failed"
    elif isinstance(error, ValueError) and re.search(
        r"exceeds? (context window|n_ctx)", str(error)
    ):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


async def refuse(_request: Request, error: Exception) -> JSONResponse:
    """Answers a request of the wrong shape: what is wrong where, and nothing of what it held."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    lines = [f"{'.'.join(map(str, e['loc']))[:200]}: {e['msg'][:200]}" for e in found[:5]]
    if len(found) > len(lines):
        lines.append(f"and {len(found) - len(lines)} more")
    status, content = describe(RequestError(printable("; ".join(lines)), 422))
    return JSONResponse(content, status)


async def refuse_route(_request: Request, error: Exception) -> JSONResponse:
    """Answers a request that no route takes (404, 405), or whose body is no JSON at all."""
    assert isinstance(error, HTTPException)
    status, content = describe(RequestError(printable(str(error.detail)), error.status_code))
    return JSONResponse(content, status, error.headers)


class RequestId(RequestIdPlugin):
    """The X-Request-ID of a request; a new one for what is no UUID, which would be answered before
    anything is logged."""

    async def extract_value_from_header_by_key(self, request: Any) -> str:
        try:
            return str(await super().extract_value_from_header_by_key(request))
        except WrongUUIDError:
            return str(self.get_new_uuid())


class ExchangeMiddleware:
    """Makes an `Exchange` of every request, and one line in the log.

    Looks at who asks, then reads the body within limits; watches whether the client is still there;
    holds the start of a response back until its first byte, so that a streamed reply which fails
    before its first token is a 500 and no broken 200; turns exceptions into errors in the form of
    the OpenAI API.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.log_prompts = app, settings.log_prompts
        self.access, self.intake = Access(settings), Intake(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        current = Exchange()
        exchange.set(current)
        status, complete = 499, False
        held: list[Message] = []

        async def send_late(message: Message) -> None:
            nonlocal status, complete
            held.append(message)
            if current.responding or message.get("body"):
                await flush()

        async def flush() -> None:
            nonlocal status, complete
            while held:
                message = held.pop(0)
                current.responding = True
                status = message.get("status", status)
                last = message["type"] == "http.response.body" and not message.get("more_body")
                complete = last and not current.client_gone.is_set()
                await send(message)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            current.client_gone.set()

        watcher: asyncio.Task[None] | None = None
        try:
            self.access.require(scope)
            async with self.intake.body(receive) as body:
                if len(body) > SMALL:  # which takes a moment
                    await to_thread.run_sync(require_modest, body)
                else:
                    require_modest(body)
                watcher = asyncio.create_task(watch())
                await self.app(scope, _replay(body, current), send_late)
            if current.error is None:
                await flush()
        except Exception as error:
            current.error = error
        except asyncio.CancelledError:  # the server ends
            current.client_gone.set()
            raise
        finally:
            if watcher is not None:
                watcher.cancel()
        if current.error is not None:
            status, content = describe(current.error)  # also of what failed within a stream
            if not current.responding:
                await JSONResponse(content, status, _HEADERS.get(status))(scope, receive, send)
        if current.client_gone.is_set() and not complete:
            status = 499
        _count_and_log(scope, current, status, self.log_prompts)


def _replay(body: bytes, current: Exchange) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await current.client_gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _count_and_log(scope: Scope, current: Exchange, status: int, log_prompts: bool) -> None:
    route = getattr(scope.get("route"), "path", "other")
    REQUESTS.labels(route, status).inc()
    words = [scope["method"], printable(scope["path"]), str(status)]
    if (steering := current.steering) is not None and current.first_token is not None:
        waited = current.first_token - current.began
        FIRST_TOKEN.observe(waited)
        if steering.gate is not None:
            GATE.labels(steering.modality).observe(steering.gate)
        if steering.alpha > 0:
            STEERED.labels(steering.modality).inc()
        words += [
            f"model={printable(current.model or '')}",
            f"vector={printable(current.vector)}",
            f"modality={steering.modality}",
            f"position={steering.position or 'none'}",
            "t=none" if steering.t is None else f"t={steering.t:.3f}",
            "gate=none" if steering.gate is None else f"gate={steering.gate:.3f}",
            f"steered={str(steering.alpha > 0).lower()}",
            f"tokens={current.tokens}",
            f"first_token_ms={1000 * waited:.0f}",
        ]
    words.append(f"ms={1000 * (time.perf_counter() - current.began):.0f}")
    request_id = f"request_id={context[HeaderKeys.request_id]}"
    words.append(request_id)
    if current.prompt is not None:
        words.append(f"prompt={json.dumps(current.prompt)}")
    error = current.error
    if error is not None and status >= 500 and status != 503:
        words.append(f"error={type(error).__name__}")
        log.error("failed: %s\n%s", request_id, _details(error, log_prompts))
    log.info(" ".join(words))


def _details(error: BaseException, everything: bool) -> str:
    """Where ``error`` came from. Messages that are not our own may quote the request."""
    if everything:
        return "".join(traceback.format_exception(error))
    cause = "" if error.__cause__ is None else _details(error.__cause__, everything)
    ours = isinstance(error, (MarsError, SteeringError)) and not isinstance(error, PromptError)
    message = f"{type(error).__name__}: {printable(str(error))}" if ours else type(error).__name__
    return f"{cause}{''.join(traceback.format_tb(error.__traceback__))}{message}\n"
