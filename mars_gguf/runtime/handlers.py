"""Chat handlers of steered models: a conversation with pictures into the context, and a report of
what steering did with every completion."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_cpp import Llama, LlamaGrammar
from llama_cpp.llama_chat_format import chat_formatter_to_chat_completion_handler
from llama_cpp.llama_grammar import JSON_GBNF

from mars_gguf.errors import PromptError
from mars_gguf.runtime.compat import (
    convert_completion_to_chat,
    convert_completion_to_chat_function,
    grammar_for_response_format,
)
from mars_gguf.runtime.mtmd import Chunk
from mars_gguf.runtime.sequences import n_alike

if TYPE_CHECKING:
    from mars_gguf.runtime.judging import Account
    from mars_gguf.runtime.llama import SteeredLlama
    from mars_gguf.runtime.template import ChatTemplate

_SAMPLING = inspect.signature(Llama.create_completion).parameters.keys()


def own_handler(llama: SteeredLlama, *, keep_turns: bool) -> Callable[..., Any]:
    """The chat handler of a model that was given none: with its mmproj, or for text alone."""
    return PictureHandler(keep_turns=keep_turns) if llama.projector is not None else text_handler


def text_handler(*, llama: SteeredLlama, **kwargs: Any) -> Any:
    """The chat handler of a SteeredLlama without mmproj: llama-cpp-python's own, with the prompts
    of ``llama.template``."""
    template = _template_for(llama, **kwargs)

    def formatter(*, messages: Sequence[Mapping[str, Any]], **variables: Any) -> Any:
        rendered = template.render(messages, **variables)
        llama.asked = rendered.opened if template is llama.template else None
        return rendered.without_media()

    try:
        return chat_formatter_to_chat_completion_handler(formatter)(llama=llama, **kwargs)
    finally:
        llama.asked = None  # of a request that failed, nothing is left for the next


def _template_for(
    llama: SteeredLlama,
    *,
    functions: list[Any] | None = None,
    function_call: Any = None,
    tools: list[Any] | None = None,
    tool_choice: Any = None,
    response_format: Any = None,
    grammar: Any = None,
    **_: Any,
) -> ChatTemplate:
    """How the prompt of a request is written. A reply that follows a grammar has no thought, else
    it would be taken for one that does not end."""
    tool = _chosen_tool(functions, function_call, tools, tool_choice)
    json_wanted = response_format is not None and response_format["type"] == "json_object"
    bound = grammar is not None or tool is not None or json_wanted
    return llama.template.thoughtless if bound else llama.template


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
        llama: SteeredLlama,
        messages: Sequence[Mapping[str, Any]],
        functions: list[Any] | None = None,
        function_call: Any = None,
        tools: list[Any] | None = None,
        tool_choice: Any = None,
        response_format: Any = None,
        grammar: Any = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        stream: bool = False,
        **kwargs: Any,
    ) -> Any:
        kwargs = {"max_tokens": None, "temperature": 0.2, "repeat_penalty": 1.1} | kwargs
        variables = {name: kwargs.pop(name) for name in list(kwargs) if name not in _SAMPLING}
        asked = {
            "functions": functions, "function_call": function_call,
            "tools": tools, "tool_choice": tool_choice,
        }  # fmt: skip
        bound = {"response_format": response_format, "grammar": grammar}
        template = _template_for(llama, **asked, **bound)
        rendered = template.render(messages, **asked | variables)
        prompt = self.lay(llama, llama.chunks_of(rendered))
        if response_format is not None and response_format["type"] == "json_object":
            grammar = grammar_for_response_format(response_format)
        tool = _chosen_tool(**asked)
        if tool is not None:
            grammar = _grammar_of(tool, llama.verbose)
        llama.asked = rendered.opened if template is llama.template else None
        try:
            completion = llama.create_completion(
                prompt,
                grammar=grammar,
                logprobs=top_logprobs if logprobs else None,
                stream=stream,
                **kwargs,
            )
        finally:
            llama.asked = None
        if tool is not None:
            return convert_completion_to_chat_function(tool["name"], completion, stream)
        return convert_completion_to_chat(completion, stream=stream)

    def lay(self, llama: SteeredLlama, chunks: Sequence[Chunk]) -> list[int]:
        """Lay a prompt into the context, all but its last run of text; the whole prompt as tokens,
        pictures by their marks. Raises ValueError if it does not fit."""
        assert llama.projector is not None
        common, rest = self._held(list(chunks), llama, llama.n_reusable)
        held = llama.rewind(common)
        if held < common:
            _, rest = self._held(list(chunks), llama, held)
        *head, tail = rest
        for chunk in head:
            text = isinstance(chunk, tuple)
            _require_room(llama, len(chunk) if text else chunk.n_tokens)  # type: ignore
            if isinstance(chunk, tuple):
                llama.eval(chunk)
            else:
                llama.place(chunk, llama.projector.decode(llama.ctx, chunk, llama.n_tokens))
        assert isinstance(tail, tuple)
        _require_room(llama, len(tail))
        again = max(0, common - llama.n_tokens)  # of what the context held
        if again:
            llama.eval(tail[:again])
        llama.keep()
        tail = tail[again:]
        return [*llama.input_ids[: llama.n_tokens].tolist(), *tail]

    def _held(self, chunks: list[Chunk], llama: SteeredLlama, end: int) -> tuple[int, list[Chunk]]:
        """How many positions of the context up to ``end`` the prompt begins with, but for its last
        token, and what follows them."""
        if not self.keep_turns:
            return 0, chunks
        position = 0
        for i, chunk in enumerate(chunks):
            if isinstance(chunk, tuple):
                last = i == len(chunks) - 1
                ids = llama.input_ids[position:end].tolist()
                same = n_alike(chunk[:-1] if last else chunk, ids)
                position += same
                if same < len(chunk):
                    return position, [chunk[same:], *chunks[i + 1 :]]
            elif position + chunk.n_positions <= end and llama.holds(chunk, position):
                position += chunk.n_positions
            else:
                return position, chunks[i:]
        raise AssertionError("a prompt ends with text")


def _require_room(llama: SteeredLlama, n_tokens: int) -> None:
    needed = llama.n_tokens + n_tokens
    if needed > llama.n_ctx():
        raise ValueError(f"Prompt exceeds n_ctx: {needed} > {llama.n_ctx()}")


def _chosen_tool(
    functions: list[Any] | None, function_call: Any, tools: list[Any] | None, tool_choice: Any
) -> dict[str, Any] | None:
    """The function that the request wants called, if it names one; as llama-cpp-python reads it."""
    offered = [tool["function"] for tool in tools or []] if functions is None else functions
    name = None
    if isinstance(function_call, dict):
        name = function_call.get("name")
    elif isinstance(tool_choice, dict):
        name = tool_choice["function"]["name"]
    if name is None or not offered:
        return None
    for function in offered:
        if function["name"] == name:
            return dict(function)
    raise PromptError(f"tool_choice: found {name!r:.40}, expected one of the tools of the request")


def _grammar_of(tool: Mapping[str, Any], verbose: bool) -> Any:
    try:
        return LlamaGrammar.from_json_schema(json.dumps(tool["parameters"]), verbose=verbose)
    except Exception:  # a schema that llama-cpp-python cannot express: JSON of any shape, as there
        return LlamaGrammar.from_string(JSON_GBNF, verbose=verbose)


class ReportingHandler:
    """A chat handler whose completions carry ``last_steering`` under the key ``mars``; when
    streaming, in the last chunk."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.handler = handler

    def __getattr__(self, name: str) -> Any:
        if name == "handler":  # before __init__, as when it is copied
            raise AttributeError(name)
        return getattr(self.handler, name)

    def __call__(self, *, llama: SteeredLlama, **kwargs: Any) -> Any:
        if llama.brought:
            _require_no_film(kwargs.get("messages", ()))
        note = llama.vector.other_system_prompt(_system(kwargs.get("messages", ())))
        reply = self.handler(llama=llama, **kwargs)
        if isinstance(reply, dict):
            return reply | {"mars": _report(llama.account, note)}
        return self._stream(llama, reply, note)

    @staticmethod
    def _stream(llama: SteeredLlama, chunks: Iterator[Any], note: str | None) -> Iterator[Any]:
        account = None
        for chunk in chunks:
            account = account or llama.account  # by the end, another reply may have begun
            if any(choice.get("finish_reason") for choice in chunk["choices"]):
                chunk = chunk | {"mars": _report(account, note)}
            yield chunk


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


def _report(account: Account, note: str | None) -> dict[str, Any] | None:
    """What steering did; with a ``note`` where the vector was measured under another system
    prompt."""
    if account.steering is None:
        return None
    report = account.steering.report()
    notes = [said for said in (report.get("note"), note) if said]
    return report | ({"note": "; ".join(notes)} if notes else {})
