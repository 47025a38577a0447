"""Takes turns, whatever threads ask for: one reply at a time, as a context has room for one; and
one thread at a time, as llama.cpp and libmtmd end the process if two use them at once."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from llama_cpp import Llama

from mars_gguf.errors import ModelError, PromptError, SteeringError
from mars_gguf.runtime.context import Context, require_prompt
from mars_gguf.runtime.judging import NOT_ISOLATED, Isolated
from mars_gguf.runtime.replies import Reply, thoughts_of

Method = TypeVar("Method", bound=Callable[..., Any])


def locked(method: Method) -> Method:
    """Decorator: the method holds its object's ``lock``, an RLock. A stream that it returns does at
    each step, and not in between. Raises ModelError if the object is ``closed``, where llama.cpp
    would end the process."""

    @wraps(method)
    def holding(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.closed:
                raise ModelError("the model is closed: load it anew")
            reply = method(self, *args, **kwargs)
            return _steps(self, reply) if isinstance(reply, Iterator) else reply

    return cast(Method, holding)


def _steps(owner: Any, stream: Iterator[Any]) -> Generator[Any, None, None]:
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


OVERTAKEN = (
    "a reply cannot go on: another prompt has used its context since. Read one to its end before "
    "the next, or load the model twice."
)
Steps = Generator[int, Sequence[int] | None, None]


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt of a chat, about to be replied to.

    begun: it ends within a thought; None of a reply that is not followed past one.
    tokens: of a prompt that is decoded, all but its last run of text, media by their marks; None of
        one that is evaluated as text.
    isolated: what was seen of it with each of its pictures alone.
    """

    begun: bool | None = None
    tokens: list[int] | None = None
    isolated: Isolated = NOT_ISOLATED


class Turns:
    """The reply that ``llama`` (a SteeredLlama) is at, and its beginning, going on and end.

    is_read: whether the states at the end of the context are known.
    """

    def __init__(self, llama: Llama, context: Context, is_read: Callable[[], bool]) -> None:
        self.llama, self.context, self._is_read = llama, context, is_read
        self.reply = Reply()
        self._prompt = ChatPrompt()

    def moved(self) -> None:
        """Take note that something else than evaluation moved the end of the context."""
        if self.reply.in_step:  # drafts are taken back, and the reply goes on
            return
        reply = Reply()
        reply.steering = self.reply.steering
        self.give_up()
        self.reply = reply

    def give_up(self) -> None:
        """End the reply that another thread is at, as soon as it comes to its next token."""
        self.reply.come("overtaken")

    def hand_over(self, complete: Any, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """The completion of ``prompt``, or of the one that a chat handler has decoded, whole or as
        a stream, with what is known of it handed over to the reply that begins."""
        known: ChatPrompt = self.llama.chat_prompt
        self.llama.chat_prompt = ChatPrompt()
        with self._beginning(known):
            completion = complete(known.tokens or prompt, *args, **kwargs)
        return self._stream(completion, known) if isinstance(completion, Iterator) else completion

    def _stream(self, chunks: Iterator[Any], known: ChatPrompt) -> Iterator[Any]:
        with self._beginning(known):
            first = next(chunks, None)
        if first is not None:
            yield first
            yield from chunks

    @contextmanager
    def _beginning(self, prompt: ChatPrompt) -> Iterator[None]:
        self._prompt = prompt
        try:
            yield
        finally:
            self._prompt = ChatPrompt()

    def generate(self, steps: Steps, prompt: list[int], *, reset: bool) -> Steps:
        """The tokens of a reply to ``prompt`` by llama-cpp-python's generator, each sampled while
        the model's lock is held. With ``reset`` the prompt is all of the context that it continues.
        Raises SteeringError if something else has used the context since the last token."""
        reply, given = None, None
        try:
            while True:
                with self.llama.lock:
                    reply = reply or self._begin(prompt, reset=reset)
                    token = self._step(reply, steps, given)
                if token is None:
                    return
                given = yield token
        finally:
            steps.close()

    def _begin(self, tokens: list[int], *, reset: bool) -> Reply:
        if not tokens:
            raise PromptError("prompt: found nothing, expected text")
        anew = self.context.steered_at is not None or not self._is_read()
        # Other policies than those that judged it may push it now.
        if anew or (self.llama.policies and not self.context.repeats):
            self.llama._requires_eval = True
        require_prompt(self.llama, tokens, self.context.tokens)
        if reset:
            self.context.resume(tokens)
        self.context.no_cell_left = False
        self.give_up()
        template, begun = self.llama.template, self._prompt.begun
        waits = template.reasoning == "answer" and not self.llama.uses_plain_handler
        thoughts = None
        if waits and begun is not None:
            thoughts = thoughts_of(self.llama, template.thinks, begun=begun)
        self.reply = Reply(thoughts, self._prompt.isolated)
        return self.reply

    def _step(self, reply: Reply, steps: Steps, given: Sequence[int] | None) -> int | None:
        """The next token of ``reply``, None at its end."""
        if self.reply is not reply or reply.state == "over":
            raise SteeringError(OVERTAKEN)
        try:
            with reply.step():
                return steps.send(given)
        except StopIteration:
            return None
        except RuntimeError as error:
            if reply.last is None or not self.context.no_cell_for(1, error):
                raise
            self.context.no_cell_left = True
            return None
