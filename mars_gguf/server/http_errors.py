"""Errors of requests, and what their clients are told: an HTTP status, and a body as the OpenAI API
has it."""

from __future__ import annotations

import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mars_gguf.console import printable
from mars_gguf.errors import MarsError, PromptError, SteeringError

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "5"}}
_TOO_LONG = re.compile(r"exceeds? (context window|n_ctx)")


class RequestError(MarsError):
    """A request that cannot be served as it is: ``status`` is the HTTP status, ``code`` the word
    that the OpenAI API has for it, ``limit`` the one of `request_limits.LIMITS` it goes beyond."""

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, limit: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.limit = status, code, limit


class ClientGone(Exception):
    """Says that nobody waits for this reply any more."""


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error."""
    error = _refusal(error) or error
    status, message = 500, str(error) or type(error).__name__
    code: str | None = None
    match error:
        case RequestError():
            status, code = error.status, error.code
        case RequestValidationError():
            status, message = 422, _mistakes(error)
        case HTTPException():  # no route takes the request, or its body is no JSON at all
            status, message = error.status_code, printable(str(error.detail))
        case PromptError():  # may quote the request, as it came
            status, message = 400, printable(message)[:500]
        case ClientGone() | ClientDisconnect():
            status = 499
        case UnicodeEncodeError():
            status = 400
            message = "the request holds half of a surrogate pair (\\ud800 to \\udfff): no text"
        case RecursionError():
            status, message = 400, "the request is nested too deeply"
        case OSError():
            message = "a file or connection of the server failed"  # which one is not for clients
        case SteeringError():
            code = "steering_failed"
        case ValueError() if _TOO_LONG.search(message):
            status, code = 400, "context_length_exceeded"
    kind = "invalid_request_error" if status < 500 else "internal_server_error"
    kind = "client_gone" if status == 499 else kind
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(error: Exception) -> JSONResponse:
    """The response that tells a client of an error."""
    status, content = describe(error)
    headers = getattr(error, "headers", None) or _HEADERS.get(status)
    return JSONResponse(content, status, headers)


def _refusal(error: Exception) -> RequestError | None:
    """The RequestError that was raised while a request was held against its type."""
    found = error.errors() if isinstance(error, RequestValidationError) else ()
    causes = (each.get("ctx", {}).get("error") for each in found)
    return next((cause for cause in causes if isinstance(cause, RequestError)), None)


def _mistakes(error: RequestValidationError) -> str:
    """The mistakes in a request of the wrong shape, and where; nothing of what it held."""
    found = error.errors()
    lines = [f"{'.'.join(map(str, e['loc']))[:200]}: {e['msg'][:200]}" for e in found[:5]]
    if len(found) > len(lines):
        lines.append(f"and {len(found) - len(lines)} more")
    return printable("; ".join(lines))
