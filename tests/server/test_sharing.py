"""Who is next of the requests that wait: clients share evenly, whatever they ask for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress

import pytest

from mars_gguf.server import sharing
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import ClientGone, RequestError
from mars_gguf.server.sharing import Line


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sharing, "time", clock)
    return clock


def had(clock: Clock, seconds: dict[str, float], requests: dict[str, int]) -> dict[str, float]:
    """Seconds of the model that each client has had when it has been worked for 1000 s, if each
    always has so many requests of so many seconds in the line; a minus the longest wait of "a0"."""
    found: dict[str, float] = defaultdict(float)

    async def ask(line: Line, client: str) -> None:
        while clock.now < 1000:
            began = clock.now
            async with line.turn(Exchange(client=client)):
                await asyncio.sleep(0)
                clock.now += seconds[client]
                found[client] += seconds[client]
            found[f"{client} waited"] = max(found[f"{client} waited"], clock.now - began)

    async def all_of_them() -> None:
        line = Line()
        await asyncio.gather(*(ask(line, c) for c, n in requests.items() for _ in range(n)))

    asyncio.run(all_of_them())
    return found


def test_clients_share_evenly_whatever_they_ask_for(clock: Clock) -> None:
    seconds = {"short": 0.1, "also short": 0.1, "long": 7.0, "longer": 11.0}
    found = had(clock, seconds, {"short": 1, "also short": 1, "long": 1, "longer": 1})
    for client in seconds:
        assert found[client] == pytest.approx(250, rel=0.1)
    assert found["short waited"] < 2 * (7 + 11)


def test_who_asks_for_much_at_a_time_has_no_more_than_others(clock: Clock) -> None:
    found = had(clock, {"one": 1.0, "many": 1.0}, {"one": 1, "many": 20})
    assert found["one"] == pytest.approx(500, rel=0.02)
    assert found["one waited"] <= 3 and found["many waited"] > 30


def test_new_clients_keep_nobody_waiting_for_ever(clock: Clock) -> None:
    async def scenario() -> float:
        line, done = Line(), asyncio.Event()

        async def one(client: str, seconds: float) -> None:
            async with line.turn(Exchange(client=client)):
                await asyncio.sleep(0)
                clock.now += seconds

        async def flood() -> None:
            n = 0
            while not done.is_set():
                n += 1
                news = [asyncio.create_task(one(f"{n}.{i}", 1.0)) for i in range(4)]
                await asyncio.wait(news, return_when=asyncio.FIRST_COMPLETED)

        await asyncio.gather(one("old", 10.0), one("other", 0.1))
        others = asyncio.create_task(flood())
        await asyncio.sleep(0)
        began = clock.now
        await one("old", 1.0)
        done.set()
        waited = clock.now - began
        await others
        return waited

    assert asyncio.run(scenario()) < 100


def test_who_leaves_the_line_is_not_waited_for(clock: Clock) -> None:
    order: list[str] = []

    async def scenario() -> None:
        line, exchanges = Line(), {name: Exchange(client=name) for name in "abcde"}
        go = asyncio.Event()

        async def one(name: str) -> None:
            async with line.turn(exchanges[name]):
                order.append(name)
                await go.wait()

        tasks = {name: asyncio.create_task(one(name)) for name in "abcde"}
        await asyncio.sleep(0.01)
        assert order == ["a"] and len(line) == 4 and line.others_wait("a")
        exchanges["b"].client_gone.set()
        tasks["c"].cancel()
        await asyncio.sleep(0.01)
        assert len(line) == 2
        with pytest.raises(ClientGone):
            await tasks["b"]
        go.set()
        tasks["a"].cancel()  # its turn goes to d, which is cancelled as it comes
        await asyncio.sleep(0)
        tasks["d"].cancel()
        await asyncio.wait_for(tasks["e"], 5)
        assert order[-1] == "e" and len(line) == 0 and line.free == 1

    asyncio.run(scenario())


def test_a_full_line_makes_room_for_who_has_least_in_it(clock: Clock) -> None:
    async def scenario() -> list[str]:
        line, go = Line(), asyncio.Event()
        refused: list[str] = []

        async def one(client: str, name: str) -> None:
            try:
                async with line.turn(Exchange(client=client), most=3):
                    await go.wait()
            except RequestError as error:
                assert error.status == 503
                refused.append(name)

        asked = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b1"), ("a", "a5")]
        tasks = []
        for client, name in [*asked, ("c", "c1"), ("d", "d1"), ("b", "b2")]:
            tasks.append(asyncio.create_task(one(client, name)))
            await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(*tasks)
        return refused

    # a1 has its turn, a2 to a4 wait; b takes a4's place, and c a3's; then nobody has two.
    assert asyncio.run(scenario()) == ["a4", "a5", "a3", "d1", "b2"]


def test_as_many_have_it_at_a_time_as_there_are_places(clock: Clock) -> None:
    async def scenario() -> int:
        line, most, at = Line(2), 0, 0

        async def one(n: int) -> None:
            nonlocal most, at
            with suppress(RequestError):
                async with line.turn(Exchange(client=str(n % 3))):
                    at += 1
                    most = max(most, at)
                    await asyncio.sleep(0.001)
                    at -= 1

        await asyncio.gather(*(one(n) for n in range(20)))
        assert line.free == 2
        return most

    assert asyncio.run(scenario()) == 2
