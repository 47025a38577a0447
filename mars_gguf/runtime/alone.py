"""One thread at a time: llama.cpp's contexts and libmtmd's end the process if two threads use them
at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from mars_gguf.errors import ModelError

P = ParamSpec("P")
R = TypeVar("R")


class Lockable(Protocol):
    """An object with a lock, which its holder may take again, that can be closed."""

    lock: AbstractContextManager[Any]
    closed: bool


S = TypeVar("S", bound=Lockable)


def alone(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorator: the method holds its object's ``lock``. A stream that it returns does at each
    step, and not in between. Raises ModelError if the object is closed, where llama.cpp would end
    the process."""

    @wraps(method)
    def locked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            if self.closed:
                raise ModelError("the model is closed: load it anew")
            reply: Any = method(self, *args, **kwargs)
            stream: Any = _steps(self, reply) if isinstance(reply, Iterator) else reply
        return stream  # type: ignore[no-any-return]

    return locked


def _steps(owner: Lockable, stream: Iterator[Any]) -> Generator[Any, None, None]:
    try:
        while True:
            with owner.lock:
                try:
                    item = next(stream)
                except StopIteration:
                    return
            yield item
    finally:
        if isinstance(stream, Generator):
            stream.close()
