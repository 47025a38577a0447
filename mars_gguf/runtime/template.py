"""Chat messages to the text of a prompt: one way for everything that asks a model.

Chat templates differ in what they take as the content of a message: a string, a list of typed
parts, or both. Given the wrong one, some fail, some write out a Python list, and some write
nothing. So a template is tried with a probe first, role by role, and of every prompt it is checked
that each text and each picture of the messages is in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, repeat
from typing import Any, Literal

from llama_cpp import llama_chat_format
from llama_cpp.llama_chat_format import ChatFormatter, ChatFormatterResponse, Jinja2ChatFormatter

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.formats import HANDLERS, PICTURE_FORMATS
from mars_gguf.reasoning import Markers, Reasoning, Thinking
from mars_gguf.runtime.messages import (
    ADVICE,
    MARKER,
    Form,
    Medium,
    Messages,
    checked,
    content_of,
    in_forms,
    mark,
    media_of,
    numbered,
    require_all,
    tail_of,
    with_texts,
)

PROBE = "zq7 mars probe 5x"
RESERVED = {"messages", "add_generation_prompt", "bos_token", "eos_token"}  # of a template
OFFERED = {"functions", "function_call", "tools", "tool_choice"}  # what requests give a template

# What llama.cpp writes prompts in where a GGUF has no template (common/chat.cpp).
CHATML = llama_chat_format.CHATML_CHAT_TEMPLATE

# Where llama-cpp-python recognises a GGUF's template it renders text by code of its own.
_FORMATTERS: dict[str | None, ChatFormatter] = {
    "chatml": llama_chat_format.format_chatml,
    "mistral-instruct": llama_chat_format.format_mistral_instruct,
    "llama-3": llama_chat_format.format_llama3,
}


@dataclass(frozen=True)
class Rendered:
    """The text of a prompt, with a MARKER for each of ``media``; ``response`` is all that
    llama-cpp-python wants to know of it. ``begun``: it ends within a thought."""

    response: ChatFormatterResponse
    media: tuple[Medium, ...]
    begun: bool = False

    @property
    def text(self) -> str:
        return self.response.prompt

    def without_media(self) -> ChatFormatterResponse:
        """The prompt for a model that sees nothing. Raises PromptError if it shows pictures."""
        if self.media:
            raise PromptError("the messages show pictures, but the model was loaded without mmproj")
        return self.response


class ChatTemplate:
    """How the prompts of one model are written.

    source: a Jinja template. name: one of HANDLERS, or of llama-cpp-python's own formatters.
    default_system: said where the messages have no system prompt. kwargs: variables for the
    template. url_parts: pictures are shown to it as image_url parts, else as text parts.
    reasoning: whether the model thinks, and which token counts; default: "off" if it thinks only
    when asked to, else "answer". ``reasoning`` is None if the template knows no thoughts.
    ``as_text`` changes what users and tools write before it is put into a prompt.
    """

    def __init__(
        self,
        source: str,
        name: str = "mtmd",
        *,
        formatter: ChatFormatter | None = None,
        default_system: str | None = None,
        url_parts: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        reasoning: Reasoning | None = None,
    ) -> None:
        self.source, self.name, self.kwargs = source, name, dict(kwargs or {})
        self.as_text: Callable[[str], str] | None = None
        if ours := sorted(RESERVED & self.kwargs.keys()):
            raise ModelError(f"chat template kwargs: {', '.join(ours)} cannot be set")
        self.default_system, self.url_parts = default_system, url_parts
        self._formatter = formatter or jinja_formatter(source, name)
        self.pinned: dict[str, Any] = {}
        self.thinking = Thinking.learnt(source, self._end_under)
        self.reasoning: Reasoning | None = None
        if self.thinking is not None:
            self.reasoning = reasoning or self.thinking.default
            self.pinned = self.thinking.off if self.reasoning == "off" else self.thinking.on
        for name, value in self.pinned.items():
            if self.kwargs.get(name, value) != value:
                raise ModelError(
                    f"chat template kwargs: found {name} = {self.kwargs[name]!r}, but reasoning is "
                    f"{self.reasoning!r}: leave the variable out, --reasoning says it"
                )

    @cached_property
    def sha256(self) -> str:
        """The hash of the source, hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(self, messages: Messages, **kwargs: Any) -> Rendered:
        """The prompt of ``messages``, to be continued by the assistant. ``kwargs`` are further
        variables for the template, such as tools.

        Raises PromptError if the template refuses the messages, or if a text or a picture of theirs
        is not in what it writes; ModelError if it shows no text at all.
        """
        messages = [checked(n, m) for n, m in enumerate(messages)]
        if self.as_text is not None:
            messages = [with_texts(m, self.as_text) for m in messages]
        media = list(media_of(messages))
        response = self._format(self._prepared(messages, repeat(MARKER)), **kwargs)
        # Once more with numbers, to see which texts and pictures are there, and in which order.
        counted = self._prepared(numbered(messages), map(mark, count()))
        proof = self._format(counted, **kwargs).prompt
        order = require_all(messages, len(media), proof)
        begun = False
        if self.thinks is not None:
            offered = {name: value for name, value in kwargs.items() if name in OFFERED}
            if offered != kwargs:
                proof = self._format(counted, **offered).prompt
            response, begun = self._ended(response, tail_of(proof))
        found = response.prompt.count(MARKER)
        if found != len(media):
            raise PromptError(
                f"the chat template shows {found} of the {len(media)} pictures in the messages. "
                f"{ADVICE}."
            )
        return Rendered(response, tuple(media[n] for n in order), begun)

    def takes(self, role: str) -> frozenset[Form]:
        """The forms in which the template shows the content of a message of ``role``; of roles that
        it was not tried with, strings, and what it takes of a user."""
        return self._forms.get(role, self._forms["user"] | {"string"})

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": content_of(text, self.takes(role))}

    @cached_property
    def _forms(self) -> dict[str, frozenset[Form]]:
        user = self._learn([], "user", [])
        if not user:
            raise ModelError(
                f"the chat template {self.name!r} shows no text of a user, neither as a string nor "
                f"as typed parts. {ADVICE}."
            )
        question = {"role": "user", "content": content_of("question", user)}
        return {
            "user": user,
            "system": self._learn([], "system", [question]) or user,
            "assistant": self._learn([question], "assistant", [question]) or user,
        }

    def _learn(self, before: list[Any], role: str, after: list[Any]) -> frozenset[Form]:
        forms: tuple[Form, ...] = ("string", "parts")
        found: set[Form] = set()
        for form in forms:
            message = {"role": role, "content": content_of(PROBE, {form})}
            try:
                text = self._format([*before, message, *after]).prompt
            except PromptError:
                continue
            written_out = form == "parts" and re.search(f"""['"]{PROBE}['"]""", text)
            if PROBE in text and not written_out:
                found.add(form)
        return frozenset(found)

    @cached_property
    def begins_thought(self) -> bool:
        """Whether prompts end within a thought."""
        return self.render([self._message("user", PROBE)]).begun

    @property
    def first_position(self) -> Literal["thought", "prompt"]:
        """The first token of a reply that counts, where none is waited for: of a thought, or of
        what answers the prompt."""
        return "thought" if self.reasoning == "thought" else "prompt"

    @cached_property
    def thoughtless(self) -> ChatTemplate:
        """The same without thoughts, for replies that have no room for one: those that follow a
        grammar. Itself, unless the answer after a thought counts."""
        if self.reasoning != "answer":
            return self
        other = copy(self)
        assert self.thinking is not None
        other.reasoning, other.pinned = "off", self.thinking.off
        return other

    # Thoughts ------------------------------------------------------------------------------------

    @property
    def thinks(self) -> Markers | None:
        """The markers of thoughts, None if the template knows none."""
        return None if self.thinking is None else self.thinking.markers

    def _end_under(self, variables: dict[str, Any]) -> str:
        """The end of the prompt of a question, under ``variables``."""
        asked = self._format([self._message("user", PROBE)], **variables)
        return asked.prompt.rpartition(PROBE)[2]

    def _ended(
        self, response: ChatFormatterResponse, tail: str
    ) -> tuple[ChatFormatterResponse, bool]:
        """A prompt that must end with ``tail``, and whether that is within a thought, which is
        ended where the model shall not think. Raises PromptError for another end: then something in
        the request had told the template otherwise."""
        assert self.thinking is not None
        if not response.prompt.endswith(tail):
            raise PromptError(
                "something in the messages, or a variable for the chat template, changes whether "
                f"the model thinks: --reasoning {self.reasoning} says that. Leave it out."
            )
        more = self.ended(tail).removeprefix(tail) if self.reasoning == "off" else ""
        begun = self.thinking.markers.begun_by(tail) and not more
        return replace(response, prompt=response.prompt + more) if more else response, begun

    def ended(self, prompt: str) -> str:
        """A prompt for a model that shall not think: the thought ended that it would begin."""
        return prompt if self.thinking is None else self.thinking.ended(prompt, self.closing)

    @cached_property
    def closing(self) -> str:
        """The text that ends a thought of nothing: the marker, spaced as the template does it in
        earlier turns; as most do, where it shows none."""
        assert self.thinks is not None
        close, thought = self.thinks.close, PROBE.upper()
        reply = self._message("assistant", PROBE) | {"reasoning_content": thought}
        try:
            text = self._format([self._message("user", "question"), reply]).prompt
        except PromptError:
            text = ""
        shown = re.search(rf"{thought}(\s*{re.escape(close)}\s*){PROBE}", text)
        return shown[1] if shown else f"\n{close}\n\n"

    def _format(self, messages: list[Any], **kwargs: Any) -> ChatFormatterResponse:
        own = {name: value for name, value in self.kwargs.items() if kwargs.get(name) is None}
        try:
            return self._formatter(messages=messages, **kwargs | own | self.pinned)
        except Exception as error:  # a template is a program of its own
            raise PromptError(f"the chat template refuses the messages: {error}") from error

    def _prepared(self, messages: Messages, marks: Iterator[str]) -> list[dict[str, Any]]:
        """``messages`` as the template takes them; the default system prompt, if they have none."""
        said = any(m["role"] == "system" and m["content"] for m in messages)
        if self.default_system is not None and not said:
            messages = [{"role": "system", "content": self.default_system}, *messages]
        return in_forms(messages, self.takes, marks, url_parts=self.url_parts)


def chat_template(
    metadata: Mapping[str, str],
    name: str | None,
    tokens: tuple[str, str],
    *,
    pictures: bool,
    eos_id: int,
    kwargs: Mapping[str, Any] | None = None,
    reasoning: Reasoning | None = None,
) -> ChatTemplate:
    """The template called ``name`` (of HANDLERS), by default that of the GGUF with ``metadata``, or
    ChatML where it has none.

    tokens: the texts of those that begin and end a sequence, as llama-cpp-python hands them to a
    template. pictures: whether libmtmd tokenizes the prompt. Raises ModelError for another name.
    """

    def jinja(source: str, name: str, **options: Any) -> ChatTemplate:
        formatter = jinja_formatter(source, name, tokens, None if pictures else [eos_id])
        return ChatTemplate(
            source, name, formatter=formatter, kwargs=kwargs, reasoning=reasoning, **options
        )

    if name in PICTURE_FORMATS:
        handler = getattr(llama_chat_format, PICTURE_FORMATS[name])
        system = handler.DEFAULT_SYSTEM_MESSAGE
        return jinja(handler.CHAT_FORMAT, name, default_system=system, url_parts=True)
    if name not in (None, *HANDLERS):
        raise ModelError(f"chat handler: found {name!r}, expected one of {', '.join(HANDLERS)}")
    own = metadata.get("tokenizer.chat_template")
    if name == "chatml" or not own:
        return jinja(CHATML, "chatml")
    if not pictures and (formatter := recognised(own)) is not None:
        return ChatTemplate(own, formatter=formatter, kwargs=kwargs)
    return jinja(own, "mtmd")


def jinja_formatter(
    source: str,
    name: str,
    tokens: tuple[str, str] = ("", ""),
    stop_token_ids: list[int] | None = None,
) -> ChatFormatter:
    """llama-cpp-python's formatter of the Jinja template ``source``, called ``name``; ``tokens``
    begin and end a sequence. Raises ModelError for one that is no Jinja."""
    try:
        return Jinja2ChatFormatter(source, tokens[1], tokens[0], stop_token_ids=stop_token_ids)
    except Exception as error:
        raise ModelError(f"the chat template {name!r} is no Jinja template: {error}") from error


def recognised(source: str) -> ChatFormatter | None:
    """llama-cpp-python's own code for the text prompts of a template, if it recognises that."""
    metadata = {"tokenizer.chat_template": source}
    return _FORMATTERS.get(llama_chat_format.guess_chat_format_from_gguf_metadata(metadata))
