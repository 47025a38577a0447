"""Handles chats with a SteeredLlama: brings a conversation with pictures into its context, and adds
to every completion a report of what steering did."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llama_cpp import Llama, LlamaGrammar
from llama_cpp.llama_chat_format import (
    chat_formatter_to_chat_completion_handler,
    get_chat_completion_handler,
)
from llama_cpp.llama_grammar import JSON_GBNF

from mars_gguf.errors import PromptError
from mars_gguf.runtime.chunks import Chunk, n_alike
from mars_gguf.runtime.compat import (
    convert_completion_to_chat,
    convert_completion_to_chat_function,
    grammar_for_response_format,
)
from mars_gguf.runtime.messages import Messages
from mars_gguf.runtime.mtmd import chunks_of, guard
from mars_gguf.runtime.replies import Reply
from mars_gguf.runtime.template import ChatTemplate

_SAMPLING = inspect.signature(Llama.create_completion).parameters.keys()


def own_handler(sees: bool, *, keep_turns: bool) -> Callable[..., Any]:
    """The chat handler of a model that was given none; ``sees``: it has an mmproj."""
    return PictureHandler(keep_turns=keep_turns) if sees else text_handler


@dataclass(frozen=True)
class Bonds:
    """The fields of a request that bind its reply to a form: tools and grammars, as
    ``Llama.create_chat_completion`` takes them."""

    functions: list[Any] | None = None
    function_call: Any = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: Any = None
    grammar: Any = None

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Bonds:
        """Those among the ``arguments`` of a request."""
        names = cls.__dataclass_fields__
        return cls(**{name: value for name, value in arguments.items() if name in names})

    @property
    def offered(self) -> dict[str, Any]:
        """The tools, as variables for a chat template."""
        names = ("functions", "function_call", "tools", "tool_choice")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def tool(self) -> dict[str, Any] | None:
        """The function that the request wants called, if it names one; as llama-cpp-python reads
        it. Raises PromptError for one that it does not offer."""
        offered = self.functions
        if offered is None:
            offered = [tool["function"] for tool in self.tools or []]
        name = None
        if isinstance(self.function_call, dict):
            name = self.function_call.get("name")
        elif isinstance(self.tool_choice, dict):
            name = self.tool_choice["function"]["name"]
        if name is None or not offered:
            return None
        for function in offered:
            if function["name"] == name:
                return dict(function)
        raise PromptError(
            f"tool_choice: found {name!r:.40}, expected one of the tools of the request"
        )

    def grammar_for(self, verbose: bool) -> Any:
        """The grammar that the reply follows, None if it is free."""
        if self.tool is not None:
            try:
                schema = json.dumps(self.tool["parameters"])
                return LlamaGrammar.from_json_schema(schema, verbose=verbose)
            except Exception:  # one that llama-cpp-python cannot express: any JSON, as there
                return LlamaGrammar.from_string(JSON_GBNF, verbose=verbose)
        if self._wants_json:
            return grammar_for_response_format(self.response_format)
        return self.grammar

    @property
    def _wants_json(self) -> bool:
        return self.response_format is not None and self.response_format["type"] == "json_object"

    def template_of(self, llama: Llama) -> ChatTemplate:
        """How the prompt is written. A reply that follows a grammar has no thought, else it would
        be taken for one that does not end."""
        bound = self.grammar is not None or self.tool is not None or self._wants_json
        template: ChatTemplate = llama.template
        return template.thoughtless if bound else template


def text_handler(*, llama: Llama, **kwargs: Any) -> Any:
    """The chat handler of a SteeredLlama without mmproj: llama-cpp-python's own, with the prompts
    of ``llama.template``."""
    template = Bonds.among(kwargs).template_of(llama)

    def formatter(*, messages: Messages, **variables: Any) -> Any:
        rendered = template.render(messages, **variables)
        llama.begun = rendered.begun if template is llama.template else None
        response = rendered.without_media()
        llama.vocabulary.require_fits(response.prompt.encode(), llama.n_ctx())
        return response

    try:
        return chat_formatter_to_chat_completion_handler(formatter)(llama=llama, **kwargs)
    finally:
        llama.begun = None  # of a request that failed, nothing is left for the next


class PictureHandler:
    """The chat handler of a SteeredLlama with an mmproj: takes and returns what llama-cpp-python's
    MTMDChatHandler does.

    keep_turns: what the context already holds of a prompt, pictures included, is not evaluated
    again.
    """

    def __init__(self, *, keep_turns: bool = False) -> None:
        self.keep_turns = keep_turns

    def __call__(
        self,
        *,
        llama: Llama,
        messages: Messages,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        stream: bool = False,
        **kwargs: Any,
    ) -> Any:
        bonds = Bonds.among(kwargs)
        kwargs = {"max_tokens": None, "temperature": 0.2, "repeat_penalty": 1.1} | kwargs
        sampling = {name: value for name, value in kwargs.items() if name in _SAMPLING}
        bound = (*_SAMPLING, *Bonds.__dataclass_fields__)
        variables = {name: value for name, value in kwargs.items() if name not in bound}
        template = bonds.template_of(llama)
        rendered = template.render(messages, **bonds.offered | variables)
        prompt = self.lay(llama, chunks_of(llama, llama.projector, rendered))
        sampling["grammar"] = bonds.grammar_for(llama.verbose)
        llama.begun = rendered.begun if template is llama.template else None
        try:
            completion = llama.create_completion(
                prompt, logprobs=top_logprobs if logprobs else None, stream=stream, **sampling
            )
        finally:
            llama.begun = None
        if bonds.tool is not None:
            return convert_completion_to_chat_function(bonds.tool["name"], completion, stream)
        return convert_completion_to_chat(completion, stream=stream)

    def lay(self, llama: Llama, chunks: Sequence[Chunk]) -> list[int]:
        """Lay a prompt into the context, all but its last run of text; the whole prompt as tokens,
        pictures by their marks. Raises ValueError if it does not fit."""
        context = llama.context
        common, rest = self._held(list(chunks), llama, context.n_reusable)
        held = context.rewind(common)
        if held < common:
            _, rest = self._held(list(chunks), llama, held)
        *head, last = rest
        for chunk in head:
            _require_room(llama, chunk.n_tokens)
            if chunk.is_text:
                llama.eval(chunk.tokens)
            else:
                end = llama.projector.decode(llama.ctx, chunk, context.n_tokens)
                context.announce(chunk.modality, chunk.identity)
                llama.n_tokens = end
        _require_room(llama, last.n_tokens)
        again = max(0, common - context.n_tokens)  # of what the context held
        if again:
            llama.eval(last.tokens[:again])
        context.keep()
        return [*context.tokens, *last.tokens[again:]]

    def _held(self, chunks: list[Chunk], llama: Llama, end: int) -> tuple[int, list[Chunk]]:
        """How many positions of the context up to ``end`` the prompt begins with, but for its last
        token, and what follows them."""
        if not self.keep_turns:
            return 0, chunks
        position, known = 0, llama.context.tokens
        for i, chunk in enumerate(chunks):
            if chunk.is_text:
                last = i == len(chunks) - 1
                same = n_alike(chunk.tokens[:-1] if last else chunk.tokens, known[position:end])
                position += same
                if same < chunk.n_tokens:
                    return position, [chunk.after(same), *chunks[i + 1 :]]
                continue
            after = position + chunk.n_positions
            ids = llama.input_ids[position:after]
            if after > end or not llama.context.marks.stand_for(chunk, ids):
                return position, chunks[i:]
            position = after
        raise AssertionError("a prompt ends with text")


def _require_room(llama: Llama, n_tokens: int) -> None:
    needed = llama.n_tokens + n_tokens
    if needed > llama.n_ctx():
        raise ValueError(f"Prompt exceeds n_ctx: {needed} > {llama.n_ctx()}")


class ReportingHandler:
    """A chat handler whose completions carry ``last_steering`` under the key ``mars``; when
    streaming, in the last chunk."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        if name == "handler":  # before __init__, as when it is copied
            raise AttributeError(name)
        return getattr(self.handler, name)

    def __call__(self, *, llama: Llama, **kwargs: Any) -> Any:
        messages = kwargs.get("messages", ())
        if llama.brought:
            _require_no_film(messages)
        system = _system(messages)
        notes = [said for policy in llama.policies if (said := policy.caution(system))]
        completion = self.handler(llama=llama, **kwargs)
        if isinstance(completion, dict):
            return completion | {"mars": _report(llama.steerer.turns.reply, notes)}
        return self._stream(llama, completion, notes)

    @staticmethod
    def _stream(llama: Llama, chunks: Iterator[Any], notes: list[str]) -> Iterator[Any]:
        reply = None
        for chunk in chunks:
            reply = reply or llama.steerer.turns.reply  # by the end, another one may have begun
            if any(choice.get("finish_reason") for choice in chunk["choices"]):
                chunk = chunk | {"mars": _report(reply, notes)}
            yield chunk


class Reported:
    """Data descriptor: the ``chat_handler`` of a Llama, as one that reports."""

    def __get__(self, llama: Any, owner: type | None = None) -> Any:
        if llama._chat_handler is None and llama.chat_format is None:
            return None  # Llama.__init__ has yet to choose a format
        given = llama._chat_handler or llama._chat_handlers.get(llama.chat_format)
        return ReportingHandler(given or get_chat_completion_handler(llama.chat_format))

    def __set__(self, llama: Any, handler: Any) -> None:
        handler = handler.handler if isinstance(handler, ReportingHandler) else handler
        guard(handler, llama.context.announce)
        llama._chat_handler = handler


def _system(messages: Sequence[Any]) -> str | None:
    """The system prompt of a conversation."""
    for message in messages:
        if message.get("role") == "system":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            return "".join(str(part.get("text") or "") for part in parts)
    return None


def _require_no_film(messages: Sequence[Any]) -> None:
    """Raise PromptError for a film: a handler of llama-cpp-python's would leave it out."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "video":
                raise PromptError("this chat handler shows no films: give mmproj instead of it")


def _report(reply: Reply, notes: Sequence[str]) -> dict[str, Any] | None:
    """The report of a reply, with ``notes`` besides its own."""
    if reply.steering is None:
        return None
    report = reply.steering.report()
    notes = [note for note in (report.get("note"), *notes) if note]
    return report | ({"note": "; ".join(notes)} if notes else {})
