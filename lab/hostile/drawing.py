"""Draws hostile requests from a seed: two fields at an extreme, and all else as a client that means
no harm would have it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from lab.hostile.extremes import (
    EMBEDDED,
    EXTREMES,
    FLAT,
    GRAMMARS,
    ROUTES,
    TEXT,
    TOOL,
    UNKNOWN,
    WRONG,
    asked,
    film,
    picture,
)

CHAT, RAW, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
# How a client takes its reply: to the end, or for so many pieces or seconds and then no more.
MANNERS = {"whole": 10, "streamed": 6, "stream left": 5, "left": 1}

FEW, OFTEN = 5, 20  # routes of few fields have few pairs, and each is drawn so often
WRONGLY = 0.2  # of the odd fields have a value that is none of theirs
ODDLY = 0.15  # of the chats are odd, too

_CHOSEN = {"type": "function", "function": {"name": "look"}}
_WITH: list[dict[str, Any]] = [
    {}, {}, {"response_format": {"type": "json_object"}}, {"grammar": GRAMMARS[2]},
    {"grammar": GRAMMARS[3]}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": _CHOSEN},
    {"logprobs": True, "top_logprobs": 3}, {"temperature": 0},
]  # fmt: skip
_ALSO: list[dict[str, Any]] = [
    {}, {"text": {"format": {"type": "json_object"}}}, {"instructions": "Be brief."},
    {"tools": [FLAT], "tool_choice": {"type": "function", "name": "look"}}, {"temperature": 0},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
]  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request; the same for the same seed and number."""

    seed: int
    number: int
    path: str
    body: dict[str, Any]
    odd: tuple[str, str]
    manner: str
    pieces: int  # after which a stream is left
    seconds: float  # after which a client that waits for a whole reply leaves

    @property
    def id(self) -> str:
        return uuid5(NAMESPACE_URL, f"{self.seed}/{self.number}").hex

    @property
    def content(self) -> bytes:
        return json.dumps(self.body).encode()

    def __str__(self) -> str:
        shown = self.content[:600].decode()
        return (
            f"request {self.number} of seed {self.seed}: POST {self.path} ({self.manner}; odd: "
            f"{', '.join(self.odd)}), {len(self.content)} bytes: {shown}\n"
            f"again: python -m lab.hostile --seed {self.seed} --only {self.number}"
        )


def draw(seed: int, number: int) -> Request:
    """The request of that number. One after another, all pairs of fields are drawn."""
    pairs = _pairs(seed)
    path, odd = pairs[number % len(pairs)]
    rng = random.Random(f"{seed}/{number}")
    body = _plain(path, rng)
    manner = "whole"
    if path in (CHAT, RAW, RESPONSES):
        manner = rng.choices(list(MANNERS), list(MANNERS.values()))[0]
        if manner.startswith("stream"):
            body["stream"] = True
    elif path == EMBEDDINGS:
        manner = rng.choice(["whole", "left"])
    extremes = EXTREMES | {"input": EMBEDDED} if path == EMBEDDINGS else EXTREMES
    for field in odd:
        body[field] = rng.choice(WRONG if rng.random() < WRONGLY else extremes.get(field, WRONG))
    # A choice of tools needs some, a kind of bias a bias; alone they say nothing.
    if path == RESPONSES and "tool_choice" in odd:
        body.setdefault("tools", [FLAT])
    elif {"tool_choice", "function_call"} & {*odd}:
        body.setdefault("tools", [TOOL])
        body.setdefault("functions", [TOOL["function"]])
    return Request(seed, number, path, body, odd, manner, rng.randint(1, 5), 0.3 * rng.random())


@cache
def _pairs(seed: int) -> list[tuple[str, tuple[str, str]]]:
    """Every two fields of every route, in the order in which they are drawn."""
    pairs = [
        (path, pair)
        for path, fields in ROUTES.items()
        for pair in combinations([*fields, UNKNOWN], 2)
        for _ in range(1 if len(fields) > FEW else OFTEN)
    ]
    random.Random(seed).shuffle(pairs)
    return pairs


def _plain(path: str, rng: random.Random) -> dict[str, Any]:
    """A request of that route without anything odd."""
    if path == CHAT:
        return {"max_tokens": 8, "messages": _question(rng)} | rng.choice(_WITH)
    if path == RAW:
        return {"prompt": TEXT, "max_tokens": 8} | rng.choice([{}, {"logprobs": 2}, {"echo": True}])
    if path == RESPONSES:
        shown = {"type": "input_image", "image_url": picture("small")["image_url"]["url"]}
        asked = rng.choice([TEXT, [{"content": [shown, {"type": "input_text", "text": TEXT}]}]])
        return {"input": asked, "max_output_tokens": 8} | rng.choice(_ALSO)
    if path.endswith("detokenize"):
        return {"tokens": [300, 301]}
    return {"input": TEXT}


def _question(rng: random.Random) -> list[Any]:
    if rng.random() < ODDLY:
        return rng.choice(EXTREMES["messages"])
    return rng.choice(
        [
            [{"role": "user", "content": TEXT}],
            [{"role": "user", "content": "What is a cup?"}],
            asked(picture("small"), text=TEXT),
            asked(film("small", "small"), text="What is done here?"),
        ]
    )
