"""One reply at a time, whatever threads ask for: a context has room for one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from mars_gguf.errors import ModelError, PromptError, SteeringError
from mars_gguf.runtime.alone import alone
from mars_gguf.runtime.context import ContextLlama

OVERTAKEN = (
    "a reply cannot go on: another prompt has used its context since. Read one to its end before "
    "the next, or load the model twice."
)


class ReplyingLlama(ContextLlama):
    """A ContextLlama whose replies do not mix.

    ``asked`` is for chat handlers to say, right before they ask for a completion, whether the
    prompt that they wrote by ``template`` ends within a thought; None: it was not written so.
    ``_opened`` says the same of the reply that begins.
    """

    asked: bool | None = None
    _opened: bool | None = None

    @alone
    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Llama.create_completion``. Threads take turns: for a reply, or a chunk of a stream,
        which ends with a SteeringError if another prompt came in between."""
        self._opened, self.asked = self.asked, None
        opened = self._opened
        try:
            reply = super().create_completion(*args, **kwargs)
        finally:
            self._opened = None
        return self._stream(reply, opened) if isinstance(reply, Iterator) else reply

    def _stream(self, chunks: Iterator[Any], opened: bool | None) -> Iterator[Any]:
        """``chunks`` of a reply that begins with the first of them."""
        self._opened = opened
        try:
            first = next(chunks, None)
        finally:
            self._opened = None
        if first is not None:
            yield first
            yield from chunks

    @alone
    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Llama.create_chat_completion``; threads take turns as in `create_completion`."""
        return super().create_chat_completion(*args, **kwargs)

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As ``Llama.generate``; the first token it yields is steered if the gate opens. Ends where
        pictures have filled the context, which may be sooner than ``n_tokens`` tells. Raises
        SteeringError if something else has used the context since it yielded last."""
        prompt, mine = list(tokens), object()
        reply = super().generate(prompt, *args, **kwargs)
        token, given, begun = None, None, False
        try:
            while not begun or token is not None:
                with self.lock:
                    if not begun:
                        self._begin(prompt, mine)
                    elif self._generating is not mine:
                        raise SteeringError(OVERTAKEN)
                    token, begun = self._step(reply, given), True
                if token is not None:
                    given = yield token
        finally:
            reply.close()
            # One that was given up may be collected in the middle of the next.
            if self._generating is mine:
                self._generating, self._reading_prompt = None, False

    def _begin(self, tokens: list[int], mine: object) -> None:
        """Make ready for the reply ``mine`` to a prompt."""
        if tokens and tokens[-1] < 0:
            raise ModelError(
                "the prompt ends with an image, expected text after it: llama.cpp has no logits "
                "there. Use a chat template, or add text."
            )
        if min(tokens, default=0) < 0:
            self._require_shown(tokens)
        self._pending, self._no_cell_left = True, False
        self._generating, self._reading_prompt = mine, True

    def _step(
        self, reply: Generator[int, Sequence[int] | None, None], given: Sequence[int] | None
    ) -> int | None:
        """The next token of a reply, None at its end."""
        self._generating_step = True
        try:
            return reply.send(given)
        except StopIteration:
            return None
        except RuntimeError as error:
            if self._pending or not self.no_cell_for(1, error):  # pending: nothing is said yet
                raise
            self._no_cell_left = True
            return None
        finally:
            self._generating_step = False

    def _require_shown(self, tokens: list[int]) -> None:
        """Raise ModelError unless the pictures of a prompt, by their marks, are those that the
        context begins with."""
        known = self.input_ids[: self._n_tokens].tolist()
        pairs = enumerate(zip(tokens, known, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(known)))
        self.require_text(tokens[same:])

    @alone
    def embed(self, input: str | list[str], *args: Any, **kwargs: Any) -> Any:
        """As ``Llama.embed``, which clears the context. Raises PromptError for a text of no tokens,
        over which llama-cpp-python writes beside its memory."""
        texts = [input] if isinstance(input, str) else input
        if not texts or any(text == "" and not self.tokenize(b"") for text in texts):
            raise PromptError("found a text of no tokens, expected some")
        try:
            return super().embed(input, *args, **kwargs)
        except BaseException:
            self.take_back(0)
            raise
