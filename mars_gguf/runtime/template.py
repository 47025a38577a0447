"""Chat messages to the text of a prompt: one way for everything that asks a model.

Chat templates differ in what they take as the content of a message: a string, a list of typed
parts, or both. Given the wrong one, some fail, some write out a Python list, and some write
nothing. So a template is tried with a probe first, role by role, and of every prompt it is checked
that each text and each picture of the messages is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from llama_cpp import llama_chat_format, mtmd_cpp
from llama_cpp.llama_chat_format import ChatFormatter, ChatFormatterResponse, Jinja2ChatFormatter

from mars_gguf.errors import ModelError, PromptError

Messages = Sequence[Mapping[str, Any]]
Form = Literal["string", "parts"]

MARKER = mtmd_cpp.mtmd_default_marker().decode()  # stands for a picture in the text of a prompt
PROBE = "zq7 mars probe 5x"
ADVICE = "Choose another template with --chat-handler (in the server --chat_format)"
ROLES = ("system", "user", "assistant")
RESERVED = {"messages", "add_generation_prompt", "bos_token", "eos_token"}  # of a template

# What llama.cpp writes prompts in where a GGUF has no template (common/chat.cpp).
CHATML = llama_chat_format.CHATML_CHAT_TEMPLATE

# llama-cpp-python's own prompt formats for pictures, by the names its server knows them by.
_HANDLERS = {
    "llava-1-5": llama_chat_format.Llava15ChatHandler,
    "llava-1-6": llama_chat_format.Llava16ChatHandler,
    "moondream": llama_chat_format.MoondreamChatHandler,
    "nanollava": llama_chat_format.NanoLlavaChatHandler,
    "obsidian": llama_chat_format.ObsidianChatHandler,
    "llama-3-vision-alpha": llama_chat_format.Llama3VisionAlphaChatHandler,
    "minicpm-v-2.6": llama_chat_format.MiniCPMv26ChatHandler,
    "qwen2.5-vl": llama_chat_format.Qwen25VLChatHandler,
}
NAMES = ("mtmd", "chatml", *_HANDLERS)

# Where llama-cpp-python recognises a GGUF's template it renders text by code of its own.
_FORMATTERS: dict[str | None, ChatFormatter] = {
    "chatml": llama_chat_format.format_chatml,
    "mistral-instruct": llama_chat_format.format_mistral_instruct,
    "llama-3": llama_chat_format.format_llama3,
}


@dataclass(frozen=True)
class Medium:
    """One picture of a prompt, by its URL; ``film`` numbers the film that it is a frame of."""

    url: str
    film: int | None = None


@dataclass(frozen=True)
class Rendered:
    """The text of a prompt, with a MARKER for each of ``media``; ``response`` is all that
    llama-cpp-python wants to know of it."""

    response: ChatFormatterResponse
    media: tuple[Medium, ...]

    @property
    def text(self) -> str:
        return self.response.prompt


class ChatTemplate:
    """How the prompts of one model are written.

    source: a Jinja template. name: one of NAMES, or of llama-cpp-python's own formatters.
    default_system: said where the messages have no system prompt. kwargs: variables for the
    template. url_parts: pictures are shown to it as image_url parts, else as text parts.
    """

    def __init__(
        self,
        source: str,
        name: str = "mtmd",
        *,
        formatter: ChatFormatter | None = None,
        bos: str = "",
        eos: str = "",
        stop_token_ids: list[int] | None = None,
        default_system: str | None = None,
        url_parts: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.name, self.kwargs = source, name, dict(kwargs or {})
        if ours := sorted(RESERVED & self.kwargs.keys()):
            raise ModelError(f"chat template kwargs: {', '.join(ours)} cannot be set")
        self.default_system, self.url_parts = default_system, url_parts
        try:
            self._formatter = formatter or Jinja2ChatFormatter(
                source, eos, bos, stop_token_ids=stop_token_ids
            )
        except Exception as error:
            raise ModelError(f"the chat template {name!r} is no Jinja template: {error}") from error

    @cached_property
    def sha256(self) -> str:
        """Of the source, hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def __call__(self, *, messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
        """The prompt of ``messages`` without pictures, as llama-cpp-python's formatters give it."""
        rendered = self.render(messages, **kwargs)
        if rendered.media:
            raise PromptError("the messages show pictures, but the model was loaded without mmproj")
        return rendered.response

    def render(self, messages: Messages, **kwargs: Any) -> Rendered:
        """The prompt of ``messages``, to be continued by the assistant. ``kwargs`` are further
        variables for the template, such as tools.

        Raises PromptError if the template refuses the messages, or if a text or a picture of theirs
        is not in what it writes; ModelError if it shows no text at all.
        """
        _require_known(messages)
        media = tuple(_media(messages))
        shown = [self._as_taken(message) for message in self._with_system(messages)]
        response = self._format(shown, **kwargs)
        _require_texts(messages, response.prompt)
        found = response.prompt.count(MARKER)
        if found != len(media):
            raise PromptError(
                f"the chat template shows {found} of the {len(media)} pictures in the messages. "
                f"{ADVICE}."
            )
        return Rendered(response, media)

    def takes(self, role: str) -> frozenset[Form]:
        """The forms in which the template shows the content of a message of ``role``."""
        return self._taken.get(role, self._taken["user"])

    @cached_property
    def _taken(self) -> dict[str, frozenset[Form]]:
        user = self._learn([], "user", [])
        if not user:
            raise ModelError(
                f"the chat template {self.name!r} shows no text of a user, neither as a string nor "
                f"as typed parts. {ADVICE}."
            )
        question = {"role": "user", "content": _content("question", user)}
        answered = self._learn([question], "assistant", [question])
        return {
            "user": user,
            "system": self._learn([], "system", [question]) or user,
            "assistant": answered or user,
        }

    def _learn(self, before: list[Any], role: str, after: list[Any]) -> frozenset[Form]:
        forms: tuple[Form, ...] = ("string", "parts")
        found: set[Form] = set()
        for form in forms:
            message = {"role": role, "content": _content(PROBE, {form})}
            try:
                text = self._format([*before, message, *after]).prompt
            except PromptError:
                continue
            if PROBE in text and "'text'" not in text and '"text"' not in text:
                found.add(form)
        return frozenset(found)

    def _format(self, messages: list[Any], **kwargs: Any) -> ChatFormatterResponse:
        try:
            return self._formatter(messages=messages, **self.kwargs | kwargs)
        except Exception as error:  # a template is a program of its own
            raise PromptError(f"the chat template refuses the messages: {error}") from error

    def _with_system(self, messages: Messages) -> Messages:
        said = any(m["role"] == "system" and m.get("content") for m in messages)
        if self.default_system is None or said:
            return messages
        return [{"role": "system", "content": self.default_system}, *messages]

    def _as_taken(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """``message`` with its content in a form that the template takes."""
        content, forms = message.get("content"), self.takes(message["role"])
        if isinstance(content, str) and "string" not in forms:
            content = [{"type": "text", "text": content}]
        elif isinstance(content, list):
            parts = [shown for part in content for shown in self._parts(part)]
            if "parts" in forms:
                content = parts
            else:
                content = "\n".join(text for part in parts if (text := _shown(part)))
        return {**message, "content": content}

    def _parts(self, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What stands for one part of a message: itself, or a marker for each of its pictures."""
        urls = list(_urls(part))
        if not urls:
            return [dict(part)]
        if self.url_parts:
            return [{"type": "image_url", "image_url": {"url": MARKER}} for _ in urls]
        return [{"type": "text", "text": MARKER} for _ in urls]


def chat_template(
    metadata: Mapping[str, str],
    name: str | None,
    tokens: tuple[str, str],
    *,
    pictures: bool,
    eos_id: int,
    kwargs: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """The template called ``name`` (of NAMES), by default that of the GGUF with ``metadata``, or
    ChatML where it has none.

    tokens: the texts of the tokens that begin and end a sequence, as llama-cpp-python hands them to
    a template. pictures: whether libmtmd tokenizes the prompt. Raises ModelError for a name that is
    none.
    """
    bos, eos = tokens
    options: dict[str, Any] = {"bos": bos, "eos": eos, "kwargs": kwargs}
    if not pictures:
        options["stop_token_ids"] = [eos_id]
    if name in _HANDLERS:
        handler = _HANDLERS[name]
        system = handler.DEFAULT_SYSTEM_MESSAGE
        return ChatTemplate(
            handler.CHAT_FORMAT, name, default_system=system, url_parts=True, **options
        )
    if name not in (None, *NAMES):
        raise ModelError(f"chat handler: found {name!r}, expected one of {', '.join(NAMES)}")
    own = metadata.get("tokenizer.chat_template")
    if name == "chatml" or not own:
        return ChatTemplate(CHATML, "chatml", **options)
    if not pictures and (formatter := recognised(own)) is not None:
        return ChatTemplate(own, formatter=formatter, kwargs=kwargs)
    return ChatTemplate(own, **options)


def recognised(source: str) -> ChatFormatter | None:
    """llama-cpp-python's own code for the text prompts of a template that it recognises; None for
    all others."""
    name = llama_chat_format.guess_chat_format_from_gguf_metadata(
        {"tokenizer.chat_template": source}
    )
    return _FORMATTERS.get(name)


def _content(text: str, forms: Any) -> Any:
    return text if "string" in forms else [{"type": "text", "text": text}]


def _shown(part: Mapping[str, Any]) -> str:
    if part.get("type") == "image_url":
        return MARKER
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _parts_of(message: Mapping[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in _parts_of(message):
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]


def _urls(part: Any) -> Iterator[str]:
    """The URLs of the pictures in one part of a message: of a picture, or of a film's frames."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image_url":
        given = part["image_url"]
        yield given["url"] if isinstance(given, Mapping) else given
    elif kind == "video":
        yield from part["video"]


def _media(messages: Messages) -> Iterator[Medium]:
    films = 0
    for message in messages:
        for part in _parts_of(message):
            film = None
            if isinstance(part, Mapping) and part.get("type") == "video":
                film, films = films, films + 1
            for url in _urls(part):
                yield Medium(url, film)


def _require_known(messages: Messages) -> None:
    """Raise PromptError for messages with something in them that no prompt can show."""
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise PromptError(f"messages[{number}]: found no role, expected system, user, ...")
        for part in _parts_of(message):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind not in ("text", "image_url", "video"):
                raise PromptError(
                    f"messages[{number}]: found a part of type {kind!r:.40}, expected text, "
                    "image_url or video"
                )
        if any(MARKER in text for text in _texts(message)):
            raise PromptError(
                f"messages[{number}]: found {MARKER} in a text: it stands for pictures, write it "
                "otherwise"
            )


def _require_texts(messages: Messages, prompt: str) -> None:
    """Raise PromptError for a text of ``messages`` that is not in ``prompt``. Templates may strip
    texts, and leave out what an assistant thought."""
    for number, message in enumerate(messages):
        if message["role"] not in ROLES:
            continue
        for text in _texts(message):
            if message["role"] == "assistant":
                text = text.rpartition("</think>")[2]
            if text.strip() not in prompt:
                raise PromptError(
                    f"the chat template drops the text of messages[{number}] "
                    f"({message['role']}: {text.strip():.40}). Leave that message out. {ADVICE}."
                )
