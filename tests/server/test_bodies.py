"""Bodies: received within limits of size, time and room, and no larger than a request can need."""

from __future__ import annotations

import json

import anyio
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from mars_gguf.server import request_limits
from mars_gguf.server.bodies import MAX_TEXT, SMALL, Intake, parsed
from mars_gguf.server.checks import RequestError
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.settings import ServerSettings


def intake() -> Intake:
    return Intake(ServerSettings(max_media_bytes=300_000, max_media_pixels=1, max_held_bytes=1))


async def receive_all(intake: Intake, *pieces: bytes, ends: bool = True) -> bytes:
    """The body that comes in ``pieces``, and a moment later no more of it, or never an end."""
    waiting = [*pieces]

    async def receive() -> Message:
        if waiting:
            more = bool(waiting[1:]) or not ends
            return {"type": "http.request", "body": waiting.pop(0), "more_body": more}
        await anyio.sleep_forever()
        raise AssertionError

    async with intake.body(receive, Exchange(client="b")) as body:
        return body


def test_a_body_counts_as_held_until_it_is_answered() -> None:
    async def hold() -> None:
        small, pieces = intake(), [b"a" * 200_000, b"b" * 100_000]
        messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": n == 0}
            for n, piece in enumerate(pieces)
        ]

        async def receive() -> Message:
            return messages.pop(0)

        current = Exchange(client="a")
        async with small.body(receive, current) as body:
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
    monkeypatch.setattr(request_limits, "BODY_SECONDS", 0.1)
    largest = intake().largest
    assert largest == 400_000 + MAX_TEXT
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


PIXELS = "data:image/png;base64," + "A" * (2 * MAX_TEXT)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": PIXELS}}]}, None),
        ({"content": [{"type": "image_url", "image_url": PIXELS}]}, None),
        ({"content": [{"type": "video", "video": [PIXELS, PIXELS]}]}, None),
        ({"content": PIXELS}, 413),
        ({"tokens": [1] * 200_000}, None),
        ({"tokens": [True] * 200_000}, 413),
        ({"messages": [{}] * 1024}, None),
        ({"messages": [{}] * 1025}, 400),
        ({"a": "b" * (MAX_TEXT + 1)}, 413),
        ({"b" * (MAX_TEXT + 1): 1}, 413),
        ([[]] * 60_000, 413),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_text_and_values_are_bounded_and_pictures_are_not_where_they_belong(
    content: object, status: int | None
) -> None:
    body = json.dumps(content).encode()
    if status is None:
        assert parsed(body) == content
    else:
        with pytest.raises(RequestError) as refused:
            parsed(body)
        assert refused.value.status == status


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", "-1E+999"])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(number: str) -> None:
    with pytest.raises(RequestError, match="expected a finite one") as refused:
        parsed(b'{"tools": [{"parameters": {"minimum": %s}}]}' % number.encode())
    assert refused.value.status == 400


def test_what_is_no_json_is_left_to_the_application_to_refuse() -> None:
    for body in (b"", b"{nope", b"\xff\xfe", b"[" * 100_000):
        assert parsed(body) is None
