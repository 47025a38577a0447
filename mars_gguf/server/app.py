"""The application: its models, the routes of the OpenAI API and those that ``llama_cpp.server`` has
besides, and the middleware around them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import llama_cpp
from anyio import to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from llama_cpp.server.types import DetokenizeInputRequest, TokenizeInputRequest
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.server.answering import in_turn, reply
from mars_gguf.server.attachments import MEDIA, decode_media, media_parts
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.middleware import ExchangeMiddleware
from mars_gguf.server.piecewise import embeddings_of
from mars_gguf.server.request_types import ChatRequest, CompletionRequest, EmbeddingRequest
from mars_gguf.server.schemas import require_schemas
from mars_gguf.server.served import Models, NamedVector
from mars_gguf.server.settings import (
    DEFAULT_VECTOR,
    RENDERED_FORMATS,
    ModelSettings,
    ServerSettings,
)

T = TypeVar("T")


class _Parsed(Request):
    """A request whose body was parsed where it was held against the limits."""

    async def json(self) -> Any:
        content = self.scope["state"].pop("content", None)
        return await super().json() if content is None else content


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_Parsed(request.scope, request.receive))

        return handle


router = APIRouter(route_class=_Route)


@router.post("/v1/chat/completions", response_model=None, tags=["OpenAI V1"])
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Chat completion, steered. ``mars`` in the reply says what steering did."""
    settings, served = request.app.state.settings, request.app.state.models
    _begin(request, body, body.messages)
    if settings.chat_only:
        body.require_free_reply()
    if body.max_tokens is None:
        body.max_tokens = body.max_completion_tokens
    model = served.settings(body.model)
    # Handlers that only llama-cpp-python has make a grammar of any tool.
    every_tool = model.chat_format not in RENDERED_FORMATS
    await to_thread.run_sync(partial(require_schemas, body, every_tool=every_tool))
    if next(media_parts(body.messages), None) is not None:
        if not model.clip_model_path:
            raise RequestError("this model sees no pictures: it is served without an mmproj")
        await decode_media(body.messages, settings, request.state.exchange)
    return await reply(request, body, "create_chat_completion")


@router.post("/v1/engines/copilot-codex/completions", response_model=None, include_in_schema=False)
async def copilot_completions(request: Request, body: CompletionRequest) -> Response:
    """Completion by the model of that alias, or the first, whichever the request names."""
    alias = "copilot-codex"
    body.model = alias if alias in request.app.state.models.vectors else None
    return await completions(request, body)


@router.post("/v1/completions", response_model=None, tags=["OpenAI V1"])
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Completion of a raw prompt, steered."""
    if request.app.state.settings.chat_only:
        raise RequestError("this server serves chat only, no completions of raw prompts", 403)
    if isinstance(body.prompt, list):
        body.prompt = body.prompt[0] if body.prompt else ""
    _begin(request, body, body.prompt)
    return await reply(request, body, "create_completion")


def _begin(request: Request, body: ChatRequest | CompletionRequest, prompt: object) -> None:
    current: Exchange = request.state.exchange
    state = request.app.state
    model = state.models.settings(body.model)
    if state.settings.log_prompts:
        current.prompt = _without_pictures(prompt)
    if body.mars is not None:
        if not state.settings.allow_client_control:
            raise RequestError("requests may not control steering on this server ('mars')", 403)
        ids = state.models.vectors[model.model_alias]
        if body.mars.vector not in ids:
            expected = f"one of {', '.join(ids)}" if ids else "none: this model is not steered"
            raise RequestError(f"mars.vector: no such id, expected {expected}")
        current.vector = body.mars.vector


def _without_pictures(prompt: object) -> object:
    if isinstance(prompt, list):
        return [_without_pictures(item) for item in prompt]
    if isinstance(prompt, dict):
        return {k: "..." if k in MEDIA else _without_pictures(v) for k, v in prompt.items()}
    return prompt


@router.post("/v1/embeddings", response_model=None, tags=["OpenAI V1"])
async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
    """Embeddings, of a model that is served with ``embedding``."""
    state = request.app.state
    if not state.models.settings(body.model).embedding:
        raise RequestError("this model gives no embeddings: it is served without 'embedding'")
    texts = [body.input] if isinstance(body.input, str) else body.input
    current = request.state.exchange
    content = await _ask(
        request, body.model, lambda llama: embeddings_of(llama, texts, body.model, current)
    )
    return Response(content, media_type="application/json")


@router.post("/extras/tokenize", tags=["Extras"])
async def tokenize(request: Request, body: TokenizeInputRequest) -> dict[str, list[int]]:
    """Tokens of a text, which may be as long as the context."""
    text = body.input.encode()

    def tokens(llama: SteeredLlama) -> list[int]:
        llama.vocabulary.require_fits(text, llama.n_ctx())
        return llama.tokenize(text, special=True)

    return {"tokens": await _ask(request, body.model, tokens)}


@router.post("/extras/tokenize/count", tags=["Extras"])
async def count_tokens(request: Request, body: TokenizeInputRequest) -> dict[str, int]:
    """How many tokens a text has, which may be as long as the context."""
    return {"count": len((await tokenize(request, body))["tokens"])}


@router.post("/extras/detokenize", tags=["Extras"])
async def detokenize(request: Request, body: DetokenizeInputRequest) -> dict[str, str]:
    """Text of tokens, which may end within a character."""

    def text(llama: SteeredLlama) -> str:
        most = llama.n_vocab() - 1
        for token in body.tokens:
            if not 0 <= token <= most:
                raise RequestError(f"tokens: found {token}, expected 0 to {most}")
        # In pieces: the time that one takes grows with its square.
        pieces = (body.tokens[at : at + 1024] for at in range(0, len(body.tokens), 1024))
        return b"".join(map(llama.detokenize, pieces)).decode(errors="replace")

    return {"text": await _ask(request, body.model, text)}


async def _ask(request: Request, model: str | None, call: Callable[[SteeredLlama], T]) -> T:
    """The answer of ``model``, when its turn has come."""
    models, current = request.app.state.models, request.state.exchange
    return await in_turn(request, lambda: call(models(current, model)))


@router.get("/v1/models", tags=["OpenAI V1"])
async def models(request: Request) -> dict[str, Any]:
    """The models, and by which vector each is steered, if it is."""
    state = request.app.state
    data = []
    for alias, vectors in state.models.vectors.items():
        described = {id: _description(named) for id, named in vectors.items()}
        mars: dict[str, Any] = {"steered": bool(vectors), "vector": described.get(DEFAULT_VECTOR)}
        if state.settings.allow_client_control:
            mars["vectors"] = described
        entry = {"object": "model", "created": 0, "owned_by": "me", "permissions": []}
        data.append({"id": alias, **entry, "mars": mars})
    return {"object": "list", "data": data}


def _description(named: NamedVector) -> dict[str, Any]:
    return {
        "name": named.name,
        "sha256": named.sha256,
        "layer": named.vector.layer,
        "modalities": named.vector.modalities,
    }


@router.get("/metrics", tags=["Extras"])
async def metrics() -> Response:
    """Counts in Prometheus text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def create_app(server: ServerSettings, models: list[ModelSettings]) -> FastAPI:
    """Makes the application and loads its models. Raises MarsError for one that does not fit its
    vector."""
    middleware = [Middleware(ExchangeMiddleware, settings=server)]
    if origins := server.cors_allow_origins:
        # Outside of the other: errors, too, are for pages of these origins.
        options: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=origins, **options))
    app = FastAPI(
        title="mars-gguf",
        version=llama_cpp.__version__,
        root_path=server.root_path,
        middleware=middleware,
        # What is wrong with a request is for the middleware to say.
        exception_handlers={HTTPException: _raise, RequestValidationError: _raise},
    )
    app.include_router(router)
    app.state.settings, app.state.models = server, Models(models)
    return app


async def _raise(_request: Request, error: Exception) -> Response:
    raise error
