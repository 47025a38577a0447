"""Limits of requests that no setting has, each with the status of the answer to who goes beyond."""

from __future__ import annotations

MAX_PICTURES = 32  # pictures and films in a request: 400
MEDIA_SECONDS = 10.0  # to fetch and decode the pictures and films of a request: 400
BODY_SECONDS = 60.0  # for the body of a request to arrive: 408
# Requests that wait for the model: 503 for the last one of the client with the most of them.
MAX_WAITING = 128
MAX_REPLY = 16 << 20  # bytes of a reply that is sent at once, or of embeddings: 400
MAX_UNREAD = 1 << 20  # bytes of a stream that its client leaves unread: an error ends it
