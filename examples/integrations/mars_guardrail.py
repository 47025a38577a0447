"""A guardrail of LiteLLM's proxy that reads what steering did: no reply passes that was not judged.

litellm.yaml beside this file uses it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail

log = logging.getLogger("mars_guardrail")


UNJUDGED = "the reply does not say that it was judged: is its model steered?"


class Judged(CustomGuardrail):
    """Refuses a reply without ``mars``, and logs the gate of every other one."""

    async def async_post_call_success_hook(
        self, data: dict[str, Any], user_api_key_dict: Any, response: Any
    ) -> Any:
        if not judged(getattr(response, "mars", None), data):
            raise HTTPException(502, UNJUDGED)
        return response

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: AsyncIterator[Any], request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        mars = None
        async for chunk in response:
            mars = getattr(chunk, "mars", None) or mars  # of the last one
            yield chunk
        if not judged(mars, request_data):
            raise ValueError(UNJUDGED)  # LiteLLM sends it as an event; an HTTPException it does not


def judged(mars: dict[str, Any] | None, data: dict[str, Any]) -> bool:
    if mars is not None:
        log.warning("model=%s gate=%s alpha=%s", data["model"], mars["gate"], mars["alpha"])
    return mars is not None
