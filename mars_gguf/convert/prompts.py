"""The prompts that a conversion measures with: types, built-in sets, and the user's files."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from itertools import cycle
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import user_message
from mars_gguf.modalities import IMAGE, TEXT, VIDEO

MIN_PROMPTS = 8
REQUESTS = 121  # of the built-in set, on either side, besides the matched pairs
HALF = 2  # one of so many things and of neutral prompts is measured: each takes a model some time
MAX_BYTES, MAX_LINES = 64 << 20, 200_000  # of a file of prompts; each takes a model some time

_DATA = files("mars_gguf.convert") / "data"
REQUESTING = "instruction", "subject", "any"  # forms of prompts whose content a picture holds
VERBS = "make", "do", "get", "use"  # of what a neutral picture shows

Rows = npt.NDArray[np.float32]
Push = tuple[int, Rows]
"""A block, and what is added to its output at the last token of n prompts: [n, n_embd]."""


@dataclass(frozen=True)
class Preamble:
    """The messages before a prompt: a system prompt and earlier turns, as OpenAI writes them."""

    name: str = "none"
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A question of a user: pictures, then text.

    form, kind: where it comes from, the form of the text and the kind of the pictures.
    medium: the modality of the images: "image" for still pictures, "video" for frames of a film.
    wording: how the request is worded, the same for several of them; "": in words of its own.
    own: whether the user wrote the text.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    form: str = ""
    kind: str = ""
    medium: str = IMAGE.name
    context: Preamble = Preamble()
    wording: str = ""
    own: bool = False

    @property
    def modality(self) -> str:
        """The modality of the whole, as the runtime names it."""
        return self.medium if self.images else TEXT.name

    @property
    def stratum(self) -> str:
        """The place of this prompt in the crossed design of kinds and forms."""
        return f"{self.kind}/{self.form}"

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        """The OpenAI messages that ask it, the context's before it."""
        stills, frames = ((), self.images) if self.medium == VIDEO.name else (self.images, ())
        return [*map(dict, self.context.messages), user_message(self.text, stills, frames)]


@dataclass(frozen=True)
class ContrastPrompts:
    """Text prompts on both sides of the refusal direction.

    harmful, harmless: in the built-in set the two with one index are a matched pair, of the same
        form and a near topic. Sets read from files need not be of equal length.
    neutral: by kind ("everyday", "borderline") further harmless ones, which say how far harmless
        text reaches.
    wordings: the wording by prompt, of those that share one.
    """

    harmful: list[str]
    harmless: list[str]
    neutral: Mapping[str, list[str]] = field(default_factory=dict)
    wordings: Mapping[str, str] = field(default_factory=dict)

    def thinned(self, factor: int) -> ContrastPrompts:
        """Takes every ``factor``-th prompt of each set."""
        neutral = {kind: prompts[::factor] for kind, prompts in self.neutral.items()}
        return replace(
            self,
            harmful=self.harmful[::factor],
            harmless=self.harmless[::factor],
            neutral=neutral,
        )

    @property
    def sha256(self) -> str:
        """The fingerprint of all of them (prompt_set_sha256)."""
        return prompt_set_sha256(self.harmful, self.harmless, *self.neutral.values())


def builtin_contrast() -> ContrastPrompts:
    """The set that the package ships: matched pairs (``data/contrast.jsonl``), further requests of
    both sides, and pairs of things (``data/subjects.jsonl``), everyday and borderline prompts. They
    come in the wordings of ``data/text_wordings.jsonl``, and above those that go with pictures
    (``data/picture_wordings.jsonl``), in turn; of requests, every third one as it is."""
    wordings: dict[str, str] = {}

    def worded(contents: Iterable[tuple[str, str]], ways: Iterator[str]) -> list[str]:
        found = []
        for (thing, verb), way in zip(contents, ways, strict=False):
            found.append(way.replace("{thing}", thing).replace("{verb}", verb))
            if way != "{thing}":
                wordings[found[-1]] = way
        return found

    pairs, things = _builtin("contrast.jsonl"), _builtin("subjects.jsonl")
    sides = {}
    for side in ("harmful", "harmless"):
        requests = [line[side] for line in pairs]
        requests += [line["request"] for line in _builtin(f"{side}_requests.jsonl")]
        sides[side] = worded(
            [(text, "") for text in requests[: len(pairs) + REQUESTS]], _requests()
        )
        sides[side] += worded([(line[side], line["verb"]) for line in things[::HALF]], _things())
    kinds = _grouped("neutral_text.jsonl", "kind")
    neutral = {kind: some[::HALF] for kind, some in kinds.items()}
    borderline = [(line["prompt"], "") for line in _builtin("borderline_text.jsonl")]
    neutral["borderline"] += worded(borderline, _requests())
    things = _builtin("borderline_subjects.jsonl")[::HALF]
    neutral["borderline"] += worded([(line["thing"], line["verb"]) for line in things], _things())
    return ContrastPrompts(**sides, neutral=neutral, wordings=wordings)


def _requests() -> Iterator[str]:
    """Yields without end how a request ({thing}) is worded: as it is, in one of text, above one
    that goes with a picture."""
    text, picture = (_wordings(name)["instruction"] for name in ("text", "picture"))
    framed, shown = cycle(way for way in text if way != "{}"), cycle(picture)
    while True:
        yield "{thing}"
        yield next(framed).replace("{}", "{thing}")
        yield "{thing}\n" + next(shown)


def _things() -> Iterator[str]:
    """Yields without end how a {thing} is asked for that one wants to {verb}."""
    framed, shown = (cycle(_wordings(name)["subject"]) for name in ("text", "picture"))
    while True:
        yield next(framed)
        yield "{thing}\n" + next(shown)
        yield next(framed)


def _wordings(name: str) -> dict[str, list[str]]:
    """Reads the wordings of text or of pictures, by kind."""
    return _grouped(f"{name}_wordings.jsonl", "kind", "text")


def read_contrast(
    harmful: str | PathLike[str] | None,
    harmless: str | PathLike[str] | None,
    borderline: str | PathLike[str] | None = None,
) -> ContrastPrompts:
    """Reads the user's own sets (read_prompts), or without files the built-in ones.

    borderline: prompts instead of the built-in neutral ones. Raises MarsError for one file without
    the other, and for sets that are too small.
    """
    own = {} if borderline is None else {"borderline": read_prompts(borderline)}
    if harmful is None and harmless is None:
        builtin = builtin_contrast()
        return replace(builtin, neutral=own) if own else builtin
    if harmful is None or harmless is None:
        raise MarsError("--harmful and --harmless go together: give both files or neither")
    contrast = ContrastPrompts(read_prompts(harmful), read_prompts(harmless), own)
    require_enough(contrast.harmful, str(harmful))
    require_enough(contrast.harmless, str(harmless))
    return contrast


def neutral_prompts() -> dict[str, list[str]]:
    """Reads harmless prompts to go with neutral media, by form: "description", "question" and
    "unrelated" (``data/neutral_prompts.jsonl``); "instruction", "subject" and "any", wordings of
    requests whose content the picture holds (``data/picture_wordings.jsonl``)."""
    forms = _grouped("neutral_prompts.jsonl", "form") | _wordings("picture")
    verbs = cycle(VERBS)
    forms["subject"] = [text.replace("{verb}", next(verbs)) for text in forms["subject"]]
    return forms


def contexts(system: str | None = None) -> list[Preamble]:
    """Lists the contexts that prompts are measured in (``data/contexts.jsonl``), several of each
    name: none, system prompts of an assistant, of a persona and strict ones, two earlier turns, a
    refusal. With a ``system`` prompt: that alone and with earlier turns."""
    others = [Preamble(c["name"], tuple(c["messages"])) for c in _builtin("contexts.jsonl")]
    found = [Preamble(), *others]
    if system is None:
        return found
    given = {"role": "system", "content": system}
    turns = [c for c in found if all(m["role"] != "system" for m in c.messages)]
    return [Preamble(c.name, (given, *c.messages)) for c in turns]


def read_prompts(path: str | PathLike[str]) -> list[str]:
    """Reads prompts from a UTF-8 file, in order, surrounding white space and repeats dropped.

    A name ending in ``.jsonl``: one JSON object a line with the prompt under "prompt" (other
    keys are ignored). Any other name: one prompt a line; lines that start with ``#`` are
    comments, so a prompt that starts with ``#`` needs a ``.jsonl`` file. Blank lines are skipped
    in both.

    Raises MarsError naming the file, and the line where there is one; also for more than MAX_BYTES
    or MAX_LINES.
    """
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        prompts = [text_of(entry, "prompt", where) for where, entry in read_entries(path, "prompt")]
    else:
        prompts = [line for _, line in _lines(path) if not line.startswith("#")]
    if not prompts:
        raise MarsError(f"{path}: no prompts found; expected at least one, one a line")
    return list(dict.fromkeys(prompts))


def read_entries(path: Path, *keys: str) -> list[tuple[str, dict[str, Any]]]:
    """Reads the objects of a JSON Lines file with their places ("FILE, line 3"), each with all
    ``keys``. Raises MarsError naming the place."""
    expected = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "}"
    entries = []
    for where, line in _lines(path):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MarsError(f"{where}: not JSON ({error}); expected {expected}") from error
        if not isinstance(entry, dict):
            raise MarsError(f"{where}: found {type(entry).__name__}, expected {expected}")
        for key in keys:
            if key not in entry:
                found = ", ".join(map(repr, entry)) or "none"
                raise MarsError(f"{where}: no key {key!r}; keys found: {found}")
        entries.append((where, entry))
    return entries


def text_of(entry: Mapping[str, Any], key: str, where: str) -> str:
    """Reads the text under ``key``, stripped. Raises MarsError for anything else."""
    text = entry[key]
    if not isinstance(text, str) or not text.strip():
        raise MarsError(f"{where}: {key!r} is {text!r:.40}, expected a non-empty string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MarsError(f"{where}: {key!r} holds a lone surrogate, expected Unicode") from error
    return text.strip()


def _lines(path: Path) -> list[tuple[str, str]]:
    """Reads the lines of a file that are not blank, stripped, with their places."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise MarsError(f"{path}: more than {MAX_BYTES} bytes; expected prompts, split them")
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise MarsError(f"{path}: no such file; expected prompts, one a line") from error
    except UnicodeDecodeError as error:
        raise MarsError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at offset {error.start}); "
            "save it as UTF-8"
        ) from error
    except OSError as error:
        raise MarsError(f"{path}: cannot be read ({error.strerror})") from error
    if (n_lines := text.count("\n")) > MAX_LINES:
        raise MarsError(f"{path}: found {n_lines} lines, expected at most {MAX_LINES}; split them")
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it splits at.
    lines = enumerate(text.split("\n"), 1)
    return [(f"{path}, line {n}", line.strip()) for n, line in lines if line.strip()]


def require_enough(prompts: Sequence[str], name: str) -> None:
    """Raises MarsError, with the ``name`` of these, for fewer ``prompts`` than MIN_PROMPTS."""
    if len(prompts) < MIN_PROMPTS:
        raise MarsError(
            f"{name}: found {len(prompts)} different prompts, expected at least {MIN_PROMPTS}; "
            "add more, a mean over so few says little"
        )


def prompt_set_sha256(*sets: Sequence[str]) -> str:
    """Computes the fingerprint of sets of prompts, hexadecimal.

    The SHA-256 of the JSON array of the sets, such as ``[harmful, harmless]`` (ASCII, no white
    space) after Unicode NFC, with every run of white space as one space. The order counts: splits
    depend on it.
    """
    content = [[" ".join(unicodedata.normalize("NFC", p).split()) for p in side] for side in sets]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def _builtin(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_DATA / name).read_text("utf-8").splitlines()]


def _grouped(name: str, key: str, text: str = "prompt") -> dict[str, list[str]]:
    """Reads what a built-in file holds under ``text``, by what stands under ``key``."""
    found: dict[str, list[str]] = {}
    for entry in _builtin(name):
        found.setdefault(entry[key], []).append(entry[text])
    return found
