"""One thread at a time: a method holds the lock of its object, a stream at each of its steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mars_gguf.errors import ModelError
from mars_gguf.runtime.alone import alone


class Counter:
    """Counts how often its lock is held within one another, and what it does."""

    def __init__(self) -> None:
        self.held, self.closed, self.ended = 0, False, False
        self.lock = self.holding()

    @contextmanager
    def holding(self) -> Iterator[None]:
        self.lock = self.holding()
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    @alone
    def whole(self, n: int) -> tuple[int, int]:
        """A docstring."""
        return self.held, n

    @alone
    def stream(self, n: int) -> Iterator[int]:
        assert self.held == 1

        def steps() -> Iterator[int]:
            try:
                for _ in range(n):
                    yield self.held
            finally:
                self.ended = True

        return steps()

    @alone
    def fails(self) -> Iterator[int]:
        def steps() -> Iterator[int]:
            yield self.held
            raise KeyError("a step")

        return steps()


def test_a_method_holds_the_lock_and_lets_go_of_it() -> None:
    counter = Counter()
    assert counter.whole(3) == (1, 3)
    assert counter.held == 0
    assert Counter.whole.__doc__ == "A docstring."


def test_a_stream_holds_the_lock_at_each_step_and_not_in_between() -> None:
    counter = Counter()
    seen = []
    for held in counter.stream(3):
        seen.append((held, counter.held))
    assert seen == [(1, 0)] * 3 and counter.ended
    steps = counter.fails()
    assert next(steps) == 1
    with pytest.raises(KeyError, match="a step"):
        next(steps)
    assert counter.held == 0


def test_a_stream_that_is_given_up_is_closed() -> None:
    counter = Counter()
    steps = counter.stream(3)
    next(steps)
    assert not counter.ended
    steps.close()  # type: ignore[attr-defined]
    assert counter.ended and counter.held == 0


def test_of_what_is_closed_nothing_is_called() -> None:
    counter = Counter()
    counter.closed = True
    for use in (lambda: counter.whole(1), lambda: counter.stream(1)):
        with pytest.raises(ModelError, match="closed"):
            use()
    assert counter.held == 0


def test_threads_come_one_after_the_other() -> None:
    class Slow:
        lock, closed = threading.RLock(), False
        within, most = 0, 0

        @alone
        def work(self) -> None:
            Slow.within += 1
            Slow.most = max(Slow.most, Slow.within)
            threading.Event().wait(0.002)
            Slow.within -= 1

    threads = [threading.Thread(target=Slow().work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Slow.most, Slow.within) == (1, 0)
