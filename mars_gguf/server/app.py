"""The application: the models, the routes, and the middleware around them."""

from __future__ import annotations

from typing import Any

import llama_cpp
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from mars_gguf.server.middleware import ExchangeMiddleware
from mars_gguf.server.routes import router
from mars_gguf.server.served import Models
from mars_gguf.server.settings import ModelSettings, ServerSettings


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
