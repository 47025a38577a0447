"""Counts each request for Prometheus, and writes its line into the log."""

from __future__ import annotations

import json
import logging
import time
import traceback
from urllib.parse import quote

from prometheus_client import Counter, Histogram
from starlette.types import Scope

from mars_gguf.console import printable
from mars_gguf.errors import MarsError, PromptError, SteeringError
from mars_gguf.runtime.judging import Steering
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.settings import UNSTEERED

log = logging.getLogger("mars_gguf.server")

MAX_PATH = 200  # characters in the log, as they are in an address: they bring no words of their own
TENTHS = [n / 10 for n in range(11)]
SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
REQUESTS = Counter("mars_requests", "Requests answered", ["path", "status"])
POLICY = ["model", "vector"]  # "none" of a model that is served unsteered
REPLIES = Counter("mars_replies", "Replies begun", POLICY)
STEERED = Counter("mars_steered_requests", "Requests steered (alpha > 0)", [*POLICY, "modality"])
GATE = Histogram("mars_gate", "Refusal gate s of replies", [*POLICY, "modality"], buckets=TENTHS)
FIRST_TOKEN = Histogram(
    "mars_first_token_seconds", "From request to first token, waiting included", buckets=SECONDS
)


def count_and_log(scope: Scope, current: Exchange, status: int, log_prompts: bool) -> None:
    """Counts the request and logs one line of it; a failure of the server with its traceback,
    whose messages may quote the request only where ``log_prompts``."""
    REQUESTS.labels(getattr(scope.get("route"), "path", "other"), status).inc()
    words = [scope["method"], quote(scope["path"])[:MAX_PATH], str(status)]
    if current.first_token is not None:
        waited = current.first_token - current.began
        policy = (current.model or "", current.vector or UNSTEERED)
        _count_reply(policy, current.steering, waited)
        words += [f"model={printable(policy[0])}", f"vector={printable(policy[1])}"]
        words += _steering_words(current.steering)
        words += [f"tokens={current.tokens}", f"first_token_ms={1000 * waited:.0f}"]
    words.append(f"ms={1000 * (time.perf_counter() - current.began):.0f}")
    words.append(f"request_id={current.request_id}")
    if current.prompt is not None:
        words.append(f"prompt={json.dumps(current.prompt)}")
    error = current.error
    if error is not None and status >= 500 and status != 503:
        words.append(f"error={type(error).__name__}")
        log.error("failed: request_id=%s\n%s", current.request_id, _details(error, log_prompts))
    log.info(" ".join(words))


def _count_reply(policy: tuple[str, str], steering: Steering | None, waited: float) -> None:
    FIRST_TOKEN.observe(waited)
    REPLIES.labels(*policy).inc()
    if steering is not None and steering.gate is not None:
        GATE.labels(*policy, steering.modality).observe(steering.gate)
    if steering is not None and steering.alpha > 0:
        STEERED.labels(*policy, steering.modality).inc()


def _steering_words(steering: Steering | None) -> list[str]:
    if steering is None:
        return ["steered=false"]
    return [
        f"modality={steering.modality}",
        f"position={steering.position or 'none'}",
        "t=none" if steering.t is None else f"t={steering.t:.3f}",
        "gate=none" if steering.gate is None else f"gate={steering.gate:.3f}",
        f"steered={str(steering.alpha > 0).lower()}",
    ]


def _details(error: BaseException, everything: bool) -> str:
    """The traceback of ``error``. Messages that are not our own may quote the request."""
    if everything:
        return "".join(traceback.format_exception(error))
    cause = "" if error.__cause__ is None else _details(error.__cause__, everything)
    ours = isinstance(error, (MarsError, SteeringError)) and not isinstance(error, PromptError)
    message = f"{type(error).__name__}: {printable(str(error))}" if ours else type(error).__name__
    return f"{cause}{''.join(traceback.format_tb(error.__traceback__))}{message}\n"
