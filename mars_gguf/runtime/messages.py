"""The messages of a chat: checked, in forms that a chat template takes, and with a proof that each
text and each picture of theirs is in the prompt that it writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from typing import Any, Literal

from llama_cpp import mtmd_cpp

from mars_gguf.errors import PromptError
from mars_gguf.media.picture import Picture
from mars_gguf.modalities import BY_PART, IMAGE, TEXT, VIDEO
from mars_gguf.reasoning import said

Messages = Sequence[Mapping[str, Any]]
Form = Literal["string", "parts"]
Takes = Callable[[str], Collection[Form]]
"""Given a role, the forms in which the template shows the content of its messages."""

MARKER = mtmd_cpp.mtmd_default_marker().decode()  # stands for a picture in the text of a prompt
SOURCES = (str, Picture)  # what names a picture, or is one
ADVICE = "Choose another template with --chat-handler (in the server --chat_format)"


@dataclass(frozen=True)
class Medium:
    """One picture of a prompt, by its URL or decoded; ``film`` numbers the film that it is a frame
    of."""

    source: str | Picture
    film: int | None = None

    @property
    def modality(self) -> str:
        return IMAGE.name if self.film is None else VIDEO.name


def in_forms(
    messages: Messages, takes: Takes, marks: Iterator[str], *, url_parts: bool
) -> list[dict[str, Any]]:
    """``messages`` with their contents in forms that the template ``takes``, and one of ``marks``
    for each picture: in an image_url part with ``url_parts``, else in a text part."""
    taken = [dict(message) for message in messages]
    for message in taken:
        if "content" in message:
            forms = takes(message["role"])
            message["content"] = _content_in(message["content"], forms, marks, url_parts)
    return taken


def _content_in(
    content: Any, forms: Collection[Form], marks: Iterator[str], url_parts: bool
) -> Any:
    if isinstance(content, str):
        return content_of(content, forms)
    parts: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == TEXT.part:
            parts.append(dict(part))
            continue
        for text in islice(marks, len(_sources(part))):
            kind, shown = (IMAGE.part, {"url": text}) if url_parts else (TEXT.part, text)
            parts.append({"type": kind, kind: shown})
    if "parts" in forms:
        return parts
    texts = (part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in parts)
    return "\n".join(filter(None, map(str, texts)))


def content_of(text: str, forms: Collection[Form]) -> Any:
    """``text`` as the content of a message, in one of ``forms``."""
    return text if "string" in forms else [{"type": "text", "text": text}]


def checked(number: int, message: Any) -> dict[str, Any]:
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


OPERATORS = ("system", "developer", "assistant")  # roles; others are of users and of tools
BREAK = "\u200b"  # a space of no width


def with_texts(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A checked message with its texts changed, one of OPERATORS as it is. Its parts are kept apart
    by BREAK where they would be changed as one: a template may write them so."""
    content = message.get("content")
    if message["role"] in OPERATORS or content is None:
        return dict(message)
    if isinstance(content, str):
        return {**message, "content": change(content)}
    parts = [dict(part) for part in content]
    texts = [part for part in parts if part["type"] == TEXT.part]
    for part in texts:
        part["text"] = change(part["text"])
    whole = "".join(part["text"] for part in texts)
    if change(whole) != whole:
        for part in texts[1:]:
            part["text"] = BREAK + part["text"]
    return {**message, "content": parts}


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
        good = isinstance(given.get("url") if isinstance(given, Mapping) else given, SOURCES)
    else:
        good = isinstance(given, list) and given and all(isinstance(one, SOURCES) for one in given)
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


def _sources(part: Mapping[str, Any]) -> list[str | Picture]:
    """The pictures in one part of a message: a picture, or a film's frames."""
    if part["type"] == IMAGE.part:
        given = part[IMAGE.part]
        return [given["url"] if isinstance(given, Mapping) else given]
    return list(part[VIDEO.part]) if part["type"] == VIDEO.part else []


def media_of(messages: Messages) -> Iterator[Medium]:
    """The pictures of checked ``messages``, in order."""
    films = count()
    for message in messages:
        content = message.get("content", "")
        for part in content if isinstance(content, list) else []:
            film = next(films) if part["type"] == VIDEO.part else None
            yield from (Medium(source, film) for source in _sources(part))


def each_isolated(messages: Messages, most: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The conversation with one alone of the pictures and films of its last turn, for each of them,
    by its place from 1; nothing where the conversation shows no other. More than ``most`` stay with
    their neighbours, in so many groups. The turn is what follows the last reply that more was said
    to; calls of tools are none."""
    known = [checked(n, message) for n, message in enumerate(messages)]
    media = [
        (n, i)
        for n, message in enumerate(known)
        if isinstance(message.get("content"), list)
        for i, part in enumerate(message["content"])
        if part["type"] != TEXT.part
    ]
    begun = _turn(known)
    shown = [place for place in media if place[0] >= begun]
    groups = min(len(shown), most) if len(media) > 1 else 0
    bounds = [len(shown) * k // groups for k in range(groups + 1)] if groups else []
    for start, end in pairwise(bounds):
        yield start + 1, _without(known, set(media) - set(shown[start:end]))


def _turn(messages: Sequence[Mapping[str, Any]]) -> int:
    """The number of the message that the last turn begins with."""
    begun = 0
    for n, message in enumerate(messages[:-1]):
        reply = message["role"] == "assistant" and not any(_called(message))
        if reply and messages[n + 1]["role"] != "assistant":
            begun = n + 1
    return begun


def _without(
    messages: list[dict[str, Any]], left_out: set[tuple[int, int]]
) -> list[dict[str, Any]]:
    """``messages`` without parts, by the numbers of message and part."""
    left = []
    for n, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            parts = [part for i, part in enumerate(content) if (n, i) not in left_out]
            message = {**message, "content": parts or [{"type": TEXT.part, TEXT.part: ""}]}
        left.append(message)
    return left


# The proof that nothing is lost: digits, which no template trims, escapes or writes otherwise, in
# place of every text, and a mark of its own for every picture.


def _number(index: int) -> str:
    return f"70{index:06}07"


def mark(index: int) -> str:
    """A mark of its own for the picture ``index``, in the place of MARKER."""
    return f"<__media_{index}__>"


def tail_of(prompt: str) -> str:
    """The end of the prompt of numbered messages, after the last text or picture."""
    last = "70[0-9]{6}07|" + mark(0).replace("0", "[0-9]+")
    return re.split(last, prompt)[-1]


def _required(text: str, role: str) -> str:
    """The part of a text that a template must show: not what an assistant thought."""
    return said(text) if role == "assistant" else text.strip()


def numbered(messages: Messages) -> list[dict[str, Any]]:
    """``messages`` with a number in place of each text."""
    numbers = map(_number, count())

    def instead(text: str, role: str) -> str:
        required = _required(text, role)
        return text.removesuffix(required) + next(numbers) if required else text

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


def require_all(messages: Messages, n_media: int, prompt: str) -> list[int]:
    """Which picture stands first, second, ... in ``prompt``, that of numbered messages. Raises
    PromptError for a text, a call of a tool or a picture that is not there."""
    numbers = map(_number, count())
    for index, message in enumerate(messages):
        texts = [text for t in _texts(message) if (text := _required(t, message["role"]))]
        lost = [text for text in texts if next(numbers) not in prompt]
        lost += [name for name in _called(message) if name not in prompt]
        if lost:
            raise PromptError(
                f"the chat template drops the text of messages[{index}] "
                f"({message['role']}: {lost[0]:.40}). Leave that message out. {ADVICE}."
            )
    order = [int(n) for n in re.findall(mark(0).replace("0", r"(\d+)"), prompt)]
    if sorted(order) != list(range(n_media)):
        raise PromptError(
            f"the chat template shows {len(order)} of the {n_media} pictures in the messages. "
            f"{ADVICE}."
        )
    return order
