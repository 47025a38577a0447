"""Chat messages to the text of a prompt: one way for everything that asks a model.

Chat templates differ in what they take as the content of a message: a string, a list of typed
parts, or both. Given the wrong one, some fail, some write out a Python list, and some write
nothing. So a template is tried with a probe first, role by role, and of every prompt it is checked
that each text and each picture of the messages is in it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, repeat
from typing import Any, Literal

from llama_cpp import llama_chat_format, mtmd_cpp
from llama_cpp.llama_chat_format import ChatFormatter, ChatFormatterResponse, Jinja2ChatFormatter

from mars_gguf.errors import ModelError, PromptError
from mars_gguf.formats import HANDLERS, PICTURE_FORMATS
from mars_gguf.modalities import BY_PART, IMAGE, TEXT, VIDEO
from mars_gguf.reasoning import KNOWN, Markers, Reasoning, markers_in, said

Messages = Sequence[Mapping[str, Any]]
Form = Literal["string", "parts"]

MARKER = mtmd_cpp.mtmd_default_marker().decode()  # stands for a picture in the text of a prompt
PROBE = "zq7 mars probe 5x"
ADVICE = "Choose another template with --chat-handler (in the server --chat_format)"
RESERVED = {"messages", "add_generation_prompt", "bos_token", "eos_token"}  # of a template
OFFERED = {"functions", "function_call", "tools", "tool_choice"}  # what requests give a template

# The variables by which templates are told to let the model think, and what they are if it shall
# not, or shall.
SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "reasoning": (False, True),
    "thinking_option": ("off", "on"),
    "thinking_mode": ("disabled", "enabled"),
}

# What llama.cpp writes prompts in where a GGUF has no template (common/chat.cpp).
CHATML = llama_chat_format.CHATML_CHAT_TEMPLATE

_PICTURE_HANDLERS = {
    name: getattr(llama_chat_format, handler) for name, handler in PICTURE_FORMATS.items()
}

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

    @property
    def modality(self) -> str:
        return IMAGE.name if self.film is None else VIDEO.name


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
        reasoning: Reasoning | None = None,
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
        self.pinned: dict[str, Any] = {}
        self._no_switch = False
        self.thinks, by_default = self._learn_thoughts()
        self.reasoning = (reasoning or by_default) if self.thinks else None
        if self.reasoning:
            self.pinned = self._switched(self.reasoning != "off")
        for name, value in self.pinned.items():
            if self.kwargs.get(name, value) != value:
                raise ModelError(
                    f"chat template kwargs: found {name} = {self.kwargs[name]!r}, but reasoning is "
                    f"{self.reasoning!r}: leave the variable out, --reasoning says it"
                )

    @cached_property
    def sha256(self) -> str:
        """Of the source, hexadecimal."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def __call__(self, *, messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
        """The prompt of ``messages`` without pictures, as llama-cpp-python's formatters give it."""
        return self.render(messages, **kwargs).without_media()

    def render(self, messages: Messages, **kwargs: Any) -> Rendered:
        """The prompt of ``messages``, to be continued by the assistant. ``kwargs`` are further
        variables for the template, such as tools.

        Raises PromptError if the template refuses the messages, or if a text or a picture of theirs
        is not in what it writes; ModelError if it shows no text at all.
        """
        messages = [_checked(n, m) for n, m in enumerate(messages)]
        media = list(_media(messages))
        response = self._format(self._as_taken(messages, repeat(MARKER)), **kwargs)
        # Once more with numbers, to see which texts and pictures are there, and in which order.
        numbered = self._as_taken(_numbered(messages), map(_mark, count()))
        order = _require_all(messages, len(media), self._format(numbered, **kwargs).prompt)
        begun = False
        if self.thinks is not None:
            own = {name: value for name, value in kwargs.items() if name in OFFERED}
            response, begun = self._ended(response, _tail(self._format(numbered, **own).prompt))
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
        return self._taken.get(role, self._taken["user"] | {"string"})

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
            written_out = form == "parts" and re.search(f"""['"]{PROBE}['"]""", text)
            if PROBE in text and not written_out:
                found.add(form)
        return frozenset(found)

    @cached_property
    def begins_thought(self) -> bool:
        """Whether prompts end within a thought."""
        if self.thinks is None:
            return False
        return self.render([{"role": "user", "content": _content(PROBE, self.takes("user"))}]).begun

    @cached_property
    def thoughtless(self) -> ChatTemplate:
        """The same without thoughts, for replies that have no room for one: those that follow a
        grammar. Itself, unless the answer after a thought counts."""
        if self.reasoning != "answer":
            return self
        other = copy(self)
        other.reasoning, other.pinned = "off", self._switched(False)
        return other

    # Thoughts ------------------------------------------------------------------------------------

    def _learn_thoughts(self) -> tuple[Markers | None, Reasoning]:
        """The markers of thoughts that the template writes or looks for, None if it knows none; and
        how it lets the model begin if it is told nothing."""
        if not any(m.open in self.source or m.close in self.source for m in KNOWN):
            return None, "off"
        try:
            asked = [{"role": "user", "content": _content(PROBE, self.takes("user"))}]
            plain = self._format(asked).prompt
            off, on = (self._format(asked, **self._switched(to)).prompt for to in (False, True))
        except (ModelError, PromptError):
            return None, "off"  # it shows nothing: said when it is used
        tails = [prompt.rpartition(PROBE)[2] for prompt in (plain, off, on)]
        written = (m for m in KNOWN for t in tails if m.begun_by(t) or m.ended_by(t))
        markers = next(written, None) or markers_in(self.source)
        if markers is None:
            return None, "off"
        self._no_switch = on == off
        asked_for = plain == off and (on != off or markers.ended_by(tails[0]))
        return markers, "off" if asked_for else "answer"

    def _switched(self, on: bool) -> dict[str, Any]:
        """The variables that tell the template whether the model shall think."""
        return {
            name: values[on]
            for name, values in SWITCHES.items()
            if re.search(rf"\b{name}\b", self.source)
        }

    def _ended(
        self, response: ChatFormatterResponse, tail: str
    ) -> tuple[ChatFormatterResponse, bool]:
        """A prompt that must end with ``tail``, and whether that is within a thought, which is
        ended where the model shall not think. Raises PromptError for another end: then something in
        the request had told the template otherwise."""
        thinks = self.thinks
        assert thinks is not None
        if not response.prompt.endswith(tail):
            raise PromptError(
                "something in the messages, or a variable for the chat template, changes whether "
                f"the model thinks: --reasoning {self.reasoning} says that. Leave it out."
            )
        more = self.ended(tail).removeprefix(tail) if self.reasoning == "off" else ""
        begun = thinks.begun_by(tail) and not more
        return replace(response, prompt=response.prompt + more) if more else response, begun

    def ended(self, prompt: str) -> str:
        """A prompt as it is for a model that shall not think: the thought ended that it would
        begin."""
        thinks = self.thinks
        if thinks is None or thinks.ended_by(prompt):
            return prompt
        if thinks.begun_by(prompt):
            return prompt + self.closing
        return prompt + thinks.open + self.closing if self._no_switch else prompt

    @cached_property
    def closing(self) -> str:
        """What ends a thought of nothing: the marker, spaced as the template does in earlier
        turns; as most do, where it shows none."""
        assert self.thinks is not None
        reply = {"role": "assistant", "content": _content(PROBE, self.takes("assistant"))}
        asked = {"role": "user", "content": _content("question", self.takes("user"))}
        thought = PROBE.upper()
        close = self.thinks.close
        try:
            text = self._format([asked, reply | {"reasoning_content": thought}]).prompt
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

    def _as_taken(self, messages: Messages, marks: Iterator[str]) -> list[dict[str, Any]]:
        """``messages`` with their contents in forms that the template takes, and one of ``marks``
        for each picture; begun by the default system prompt where they have none."""
        said = any(m["role"] == "system" and m["content"] for m in messages)
        if self.default_system is not None and not said:
            messages = [{"role": "system", "content": self.default_system}, *messages]
        return [{**m, **self._content(m, marks)} for m in messages]

    def _content(self, message: Mapping[str, Any], marks: Iterator[str]) -> dict[str, Any]:
        if "content" not in message:
            return {}
        content, forms = message["content"], self.takes(message["role"])
        if isinstance(content, str):
            return {"content": _content(content, forms)}
        parts = [shown for part in content for shown in self._parts(part, marks)]
        if "parts" in forms:
            return {"content": parts}
        return {"content": "\n".join(text for part in parts if (text := _shown(part)))}

    def _parts(self, part: Mapping[str, Any], marks: Iterator[str]) -> list[dict[str, Any]]:
        """What stands for one part of a message: itself, or a mark for each of its pictures."""
        if part["type"] == "text":
            return [dict(part)]
        if self.url_parts:
            return [{"type": "image_url", "image_url": {"url": next(marks)}} for _ in _urls(part)]
        return [{"type": "text", "text": next(marks)} for _ in _urls(part)]


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

    tokens: the texts of the tokens that begin and end a sequence, as llama-cpp-python hands them to
    a template. pictures: whether libmtmd tokenizes the prompt. Raises ModelError for a name that is
    none.
    """
    bos, eos = tokens
    options: dict[str, Any] = {"bos": bos, "eos": eos, "kwargs": kwargs, "reasoning": reasoning}
    if not pictures:
        options["stop_token_ids"] = [eos_id]
    if name in _PICTURE_HANDLERS:
        handler = _PICTURE_HANDLERS[name]
        system = handler.DEFAULT_SYSTEM_MESSAGE
        return ChatTemplate(
            handler.CHAT_FORMAT, name, default_system=system, url_parts=True, **options
        )
    if name not in (None, *HANDLERS):
        raise ModelError(f"chat handler: found {name!r}, expected one of {', '.join(HANDLERS)}")
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


def _content(text: str, forms: Collection[Form]) -> Any:
    return text if "string" in forms else [{"type": "text", "text": text}]


def _shown(part: Mapping[str, Any]) -> str:
    return str(part["text"] if part["type"] == "text" else part["image_url"]["url"])


def _checked(number: int, message: Any) -> dict[str, Any]:
    """A message with its content a string or a list of known parts. Raises PromptError for one with
    something in it that no prompt can show."""
    where = f"messages[{number}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise PromptError(f"{where}: found no role, expected system, user, ...")
    checked = dict(message)
    content = checked.get("content")
    if content is None and (checked.get("tool_calls") or checked.get("function_call")):
        # As the OpenAI API writes a message that only calls tools; templates would write "None".
        return checked | {"content": ""} if "content" in checked else checked
    if isinstance(content, tuple):
        content = list(content)
    if not isinstance(content, str | list):
        raise PromptError(f"{where}: found {content!r:.40} for content, expected text or parts")
    for part in content if isinstance(content, list) else []:
        _require_known(where, part)
    if any(MARKER in text for text in _texts({"content": content})):
        raise PromptError(
            f"{where}: found {MARKER} in a text: it stands for pictures, write it otherwise"
        )
    return checked | {"content": content}


def _require_known(where: str, part: Any) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind not in BY_PART:
        raise PromptError(
            f"{where}: found a part of type {kind!r:.40}, expected one of {', '.join(BY_PART)}"
        )
    given = part.get(kind)
    good: object
    if kind == TEXT.part:
        good = isinstance(given, str)
    elif kind == IMAGE.part:
        good = isinstance(given.get("url") if isinstance(given, Mapping) else given, str)
    else:
        good = isinstance(given, list) and given and all(isinstance(url, str) for url in given)
    if not good:
        raise PromptError(
            f"{where}: found {given!r:.40} in a part of type {kind}, expected "
            + {"text": "a string", "image_url": "a URL", "video": "a list of URLs"}[str(kind)]
        )


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    content = message.get("content", "")
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content if part["type"] == "text")


def _urls(part: Mapping[str, Any]) -> Iterator[str]:
    """The URLs of the pictures in one part of a message: of a picture, or of a film's frames."""
    if part["type"] == "image_url":
        given = part["image_url"]
        yield given["url"] if isinstance(given, Mapping) else given
    elif part["type"] == "video":
        yield from part["video"]


def _media(messages: Messages) -> Iterator[Medium]:
    films = count()
    for message in messages:
        content = message.get("content", "")
        for part in content if isinstance(content, list) else []:
            film = next(films) if part["type"] == VIDEO.part else None
            yield from (Medium(url, film) for url in _urls(part))


# The proof that nothing is lost: digits, which no template trims, escapes or writes otherwise, in
# place of every text, and a mark of its own for every picture.


def _number(index: int) -> str:
    return f"70{index:06}07"


def _mark(index: int) -> str:
    return f"<__media_{index}__>"


def _tail(prompt: str) -> str:
    """What follows the last text or picture in the prompt of numbered messages."""
    last = "70[0-9]{6}07|" + _mark(0).replace("0", "[0-9]+")
    return re.split(last, prompt)[-1]


def _said(text: str, role: str) -> str:
    """What of a text a template must show: it may leave out what an assistant thought."""
    return said(text) if role == "assistant" else text.strip()


def _numbered(messages: Messages) -> list[dict[str, Any]]:
    """``messages`` with a number in place of each text."""
    numbers = map(_number, count())

    def instead(text: str, role: str) -> str:
        said = _said(text, role)
        return text[: len(text) - len(said)] + next(numbers) if said else text

    numbered = []
    for message in messages:
        role, content = message["role"], message.get("content", "")
        if isinstance(content, str):
            content = instead(content.rstrip(), role)
        else:
            content = [
                {**part, "text": instead(part["text"].rstrip(), role)}
                if part["type"] == "text" else part
                for part in content
            ]  # fmt: skip
        numbered.append({**message, **({"content": content} if "content" in message else {})})
    return numbered


def _called(message: Mapping[str, Any]) -> Iterator[str]:
    """The names of the tools that a message calls."""
    for call in message.get("tool_calls") or []:
        function = call.get("function") if isinstance(call, Mapping) else None
        yield str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _require_all(messages: Messages, n_media: int, prompt: str) -> list[int]:
    """Which picture stands first, second, ... in ``prompt``, that of numbered messages. Raises
    PromptError for a text, a call of a tool or a picture that is not there."""
    numbers = map(_number, count())
    for index, message in enumerate(messages):
        said = [text for t in _texts(message) if (text := _said(t, message["role"]))]
        lost = [text for text in said if next(numbers) not in prompt]
        lost += [name for name in _called(message) if name not in prompt]
        if lost:
            raise PromptError(
                f"the chat template drops the text of messages[{index}] "
                f"({message['role']}: {lost[0]:.40}). Leave that message out. {ADVICE}."
            )
    order = [int(n) for n in re.findall(_mark(0).replace("0", r"(\d+)"), prompt)]
    if sorted(order) != list(range(n_media)):
        raise PromptError(
            f"the chat template shows {len(order)} of the {n_media} pictures in the messages. "
            f"{ADVICE}."
        )
    return order
