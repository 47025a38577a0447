"""Handles chats with a SteeredLlama: has prompts with pictures decoded into its context, and adds
to every completion a report of what steering did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llama_cpp import Llama, mtmd_cpp
from llama_cpp.llama_chat_format import (
    ChatFormatterResponse,
    chat_formatter_to_chat_completion_handler,
    get_chat_completion_handler,
)

from mars_gguf.errors import PromptError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.modalities import IMAGE, VIDEO
from mars_gguf.runtime.decoding import Render, decode_prompt
from mars_gguf.runtime.messages import Messages
from mars_gguf.runtime.mtmd import require_decoded, require_one_batch, silence_mtmd
from mars_gguf.runtime.replies import Reply
from mars_gguf.runtime.template import ChatTemplate
from mars_gguf.runtime.turns import ChatPrompt


def own_handler(*, llama: Llama, **kwargs: Any) -> Any:
    """The chat handler of a SteeredLlama that was given none: llama-cpp-python's own for text, with
    the prompts of ``llama.template``. With an mmproj a prompt is decoded first."""
    template: ChatTemplate = llama.template
    if _is_bound(kwargs):
        template = template.thoughtless  # else the reply would be a thought that does not end

    def formatter(*, messages: Messages, **variables: Any) -> ChatFormatterResponse:
        render: Render = partial(template.render, **variables)
        if llama.projector is None:
            rendered = render(messages)
            response = rendered.without_media()
            llama.vocabulary.require_fits(response.prompt.encode(), llama.n_ctx())
            prompt = ChatPrompt(rendered.begun)
        else:
            response = ChatFormatterResponse("")
            # Where the answer counts, what was thought of all pictures comes before it.
            isolates = template.reasoning != "answer"
            prompt = decode_prompt(llama, render, messages, isolates=isolates)
        llama.chat_prompt = prompt if template is llama.template else replace(prompt, begun=None)
        return response

    try:
        return chat_formatter_to_chat_completion_handler(formatter)(llama=llama, **kwargs)
    finally:
        llama.chat_prompt = ChatPrompt()  # of a request that failed, nothing is left for the next


def _is_bound(arguments: Mapping[str, Any]) -> bool:
    """Whether a reply follows a grammar, as llama-cpp-python reads the ``arguments`` of
    ``Llama.create_chat_completion``."""
    given = {name for name, value in arguments.items() if value is not None}
    chosen = any(isinstance(arguments.get(name), dict) for name in ("function_call", "tool_choice"))
    calls = chosen and not given.isdisjoint(("functions", "tools"))
    wants_json = (arguments.get("response_format") or {}).get("type") == "json_object"
    return calls or wants_json or "grammar" in given


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
        if llama.uses_plain_handler:
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


def chat_handler_of(llama: Llama) -> ReportingHandler:
    """The chat handler of a SteeredLlama: its own, or that of llama-cpp-python's which it was
    given, or which belongs to the ``chat_format`` that it was."""
    if not llama.uses_plain_handler:
        return ReportingHandler(own_handler)
    handler = (
        llama.chat_handler
        or llama._chat_handlers.get(llama.chat_format)
        or get_chat_completion_handler(llama.chat_format)
    )
    _guard(handler, llama.context.announce)
    return ReportingHandler(handler)


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


# Handlers of llama-cpp-python's -----------------------------------------------------------------

Note = Callable[[str], None]  # told of each medium that is decoded, its modality


class _Guarded:
    """``llama_cpp.mtmd_cpp`` as a handler of llama-cpp-python's sees it."""

    def __init__(self, note: Note) -> None:
        self._note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(mtmd_cpp, name)

    def mtmd_helper_eval_chunk_single(
        self, mtmd_context: Any, context: Any, chunk: Any, start: Any, *rest: Any
    ) -> int:
        """As libmtmd's, after a look at what it does not look at."""
        require_one_batch(mtmd_context, chunk, context)
        with interrupts_held():
            code = mtmd_cpp.mtmd_helper_eval_chunk_single(
                mtmd_context, context, chunk, start, *rest
            )
        require_decoded(code, context)
        # libmtmd names the frames of a film by its hash, a plus and their number.
        film = b"+" in (mtmd_cpp.mtmd_input_chunk_get_id(chunk) or b"")
        self._note(VIDEO.name if film else IMAGE.name)
        return code


def _guard(handler: Any, note: Note) -> None:
    """Make a chat handler of llama-cpp-python's look at pictures before it decodes them, and tell
    ``note`` of each."""
    if hasattr(handler, "_mtmd_cpp"):
        silence_mtmd()
        handler._mtmd_cpp = _Guarded(note)
