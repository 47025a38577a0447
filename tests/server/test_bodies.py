"""Bodies: received within limits of size, time and room, and no larger than a request can need."""

from __future__ import annotations

import json
from dataclasses import replace

import anyio
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from mars_gguf.server.bodies import SMALL, Intake, parsed
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_limits import LIMITS, most
from mars_gguf.server.settings import ServerSettings

TEXT = most("text")
PIXELS = "data:image/png;base64," + "A" * (2 * TEXT)


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": PIXELS}}]}, None),
        ({"content": [{"type": "image_url", "image_url": PIXELS}]}, None),
        ({"content": [{"type": "video", "video": [PIXELS, PIXELS]}]}, None),
        ({"content": PIXELS}, "text"),
        ({"tokens": [1] * 200_000}, None),
        ({"tokens": [1] * 300_000}, "values"),
        ({"tokens": [True] * 200_000}, "values"),
        ({"a": "b" * (TEXT + 1)}, "text"),
        ({"b" * (TEXT + 1): 1}, "text"),
        ([[]] * 60_000, "values"),
        ([0] * 600_000, "marks"),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_text_and_values_are_bounded_and_pictures_are_not_where_they_belong(
    content: object, limit: str | None
) -> None:
    body = json.dumps(content).encode()
    if limit is None:
        assert parsed(body) == content
    else:
        with pytest.raises(RequestError) as refused:
            parsed(body)
        assert (refused.value.limit, refused.value.status) == (limit, 413)


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", "-1E+999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(number: str) -> None:
    with pytest.raises(RequestError, match="expected a finite one") as refused:
        parsed(b'{"tools": [{"parameters": {"minimum": %s}}]}' % number.encode())
    assert refused.value.status == 400


def test_what_is_no_json_is_left_to_the_application_to_refuse() -> None:
    for body in (b"", b"{nope", b"\xff\xfe", b"[" * 100_000):
        assert parsed(body) is None
    with pytest.raises(RequestError, match="nested too deeply"):
        parsed(b"[" * 200 + b"]" * 200)


def intake() -> Intake:
    return Intake(ServerSettings(max_media_bytes=300_000, max_media_pixels=1, max_held_bytes=1))


def sent(*pieces: bytes, ends: bool = True) -> Receive:
    """What receives a body in ``pieces``, and a moment later no more of it, or never an end."""
    waiting = [*pieces]

    async def receive() -> Message:
        if waiting:
            more = bool(waiting[1:]) or not ends
            return {"type": "http.request", "body": waiting.pop(0), "more_body": more}
        await anyio.sleep_forever()
        raise AssertionError

    return receive


async def receive_all(intake: Intake, *pieces: bytes, ends: bool = True) -> bytes:
    async with intake.body(sent(*pieces, ends=ends), Exchange(client="b")) as body:
        return body


def test_a_body_counts_as_held_until_it_is_answered() -> None:
    async def hold() -> None:
        small, current, pieces = intake(), Exchange(client="a"), [b"a" * 200_000, b"b" * 100_000]
        async with small.body(sent(*pieces), current) as body:
            assert (body, small.held) == (b"".join(pieces), {"a": 300_000})
            current.hold(50_000)  # a picture that it names
            current.hold(-20_000)
            assert small.held == {"a": 330_000}
            with pytest.raises(RequestError, match="holds as many requests as it can"):
                current.hold(small.room)
        assert small.held == {}

    anyio.run(hold)


def test_a_body_that_is_too_large_too_slow_or_one_too_many_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LIMITS, "body_seconds", replace(LIMITS["body_seconds"], most=0))
    largest = intake().largest
    assert largest == 400_000 + TEXT
    for held, pieces, ends, status in (
        (0, [b"a" * (largest + 1)], True, 413),
        (0, [b"a"], False, 408),
        (largest, [b"a" * (SMALL + 1)], True, 503),
    ):
        refusing = intake()
        refusing.held["a"] = held
        with pytest.raises(RequestError) as refused:
            anyio.run(lambda r=refusing, p=pieces, e=ends: receive_all(r, *p, ends=e))
        assert (refused.value.status, refusing.held.total()) == (status, held)


def test_a_small_body_is_taken_however_many_are_held() -> None:
    full = intake()
    full.held["a"] = full.room
    assert anyio.run(receive_all, full, b"a" * SMALL) == b"a" * SMALL


@pytest.mark.parametrize(
    ("held", "taken"),
    [
        ({"a": 60, "b": 19}, True),
        ({"a": 80}, True),
        ({"b": 50}, False),
        ({"a": 60, "b": 20}, False),
    ],
)
def test_a_client_leaves_as_much_room_to_others_as_it_takes(
    held: dict[str, int], taken: bool
) -> None:
    """Of 100 MiB, where the client b asks for one more; the first that it asks for it may have."""
    intake = Intake(ServerSettings(max_held_bytes=100 << 20))
    intake.held.update({client: size << 20 for client, size in held.items()})
    body = b"a" * (1 << 20)
    if taken:
        assert anyio.run(receive_all, intake, body) == body
    else:
        with pytest.raises(RequestError, match="holds as many requests as it can"):
            anyio.run(receive_all, intake, body)


def test_a_client_that_leaves_while_it_sends_is_gone() -> None:
    async def leave() -> None:
        messages: list[Message] = [
            {"type": "http.request", "body": b"a", "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            return messages.pop(0)

        async with intake().body(receive, Exchange()):
            raise AssertionError

    with pytest.raises(ClientDisconnect):
        anyio.run(leave)
