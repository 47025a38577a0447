"""The prompts that a conversion measures with: built-in sets and the user's own files."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from mars_gguf.errors import MarsError

MIN_PROMPTS = 8

T = TypeVar("T")


@dataclass(frozen=True)
class ContrastPrompts:
    """Text prompts on both sides of the refusal direction.

    In the built-in set ``harmful[i]`` and ``harmless[i]`` are a matched pair: the same form,
    a near topic. Sets read from files need not be of equal length.
    """

    harmful: list[str]
    harmless: list[str]

    @property
    def sha256(self) -> str:
        return prompt_set_sha256(self.harmful, self.harmless)

    def split(self, held_out: float, seed: int) -> tuple[ContrastPrompts, ContrastPrompts]:
        """(train, held out). Sides of equal length are split at the same positions, so matched
        pairs stay together."""
        train_harmful, held_harmful = split(self.harmful, held_out, seed)
        train_harmless, held_harmless = split(self.harmless, held_out, seed)
        return (
            ContrastPrompts(train_harmful, train_harmless),
            ContrastPrompts(held_harmful, held_harmless),
        )


def builtin_contrast() -> ContrastPrompts:
    """The matched pairs that the package ships (``data/contrast.jsonl``)."""
    pairs = list(_builtin("contrast.jsonl"))
    return ContrastPrompts([pair["harmful"] for pair in pairs], [p["harmless"] for p in pairs])


def neutral_prompts() -> dict[str, list[str]]:
    """Harmless prompts to go with neutral media, by form (``data/neutral_prompts.jsonl``):
    "request" (refers to the picture without naming its subject), "description", "question",
    "unrelated" (has nothing to do with the picture)."""
    forms: dict[str, list[str]] = {}
    for entry in _builtin("neutral_prompts.jsonl"):
        forms.setdefault(entry["form"], []).append(entry["prompt"])
    return forms


def read_prompts(path: str | PathLike[str]) -> list[str]:
    """Read prompts from a UTF-8 file, in order, surrounding white space and repeats dropped.

    A name ending in ``.jsonl``: one JSON object a line with the prompt under "prompt" (other
    keys are ignored). Any other name: one prompt a line; lines that start with ``#`` are
    comments, so a prompt that starts with ``#`` needs a ``.jsonl`` file. Blank lines are skipped
    in both.

    Raises MarsError naming the file, and the line where there is one.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MarsError(f"{path}: no such file; expected prompts, one a line") from error
    except UnicodeDecodeError as error:
        raise MarsError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at offset {error.start}); "
            "save it as UTF-8"
        ) from error
    except OSError as error:
        raise MarsError(f"{path}: cannot be read ({error.strerror})") from error
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it splits at.
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix.lower() == ".jsonl":
        prompts = [_prompt_of(line, f"{path}, line {number}") for number, line in lines]
    else:
        prompts = [line for _, line in lines if not line.startswith("#")]
    if not prompts:
        raise MarsError(f"{path}: no prompts found; expected at least one, one a line")
    return list(dict.fromkeys(prompts))


def require_enough(prompts: Sequence[str], name: str) -> None:
    """Raise MarsError if `prompts`, called `name` in the message, are fewer than MIN_PROMPTS."""
    if len(prompts) < MIN_PROMPTS:
        raise MarsError(
            f"{name}: found {len(prompts)} different prompts, expected at least {MIN_PROMPTS}; "
            "add more, a mean over so few says little"
        )


def prompt_set_sha256(harmful: Sequence[str], harmless: Sequence[str]) -> str:
    """Fingerprint of a contrast set, as lower-case hex.

    The SHA-256 of the JSON array ``[harmful, harmless]`` (ASCII, no white space) after Unicode
    NFC, with every run of white space as one space. The order counts: `split` depends on it.
    """
    content = [[_normalised(prompt) for prompt in side] for side in (harmful, harmless)]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def split(items: Sequence[T], held_out: float, seed: int) -> tuple[list[T], list[T]]:
    """Split into (train, held out), each at least one item, both in the order of `items`.

    `held_out` is a share, 0 < held_out < 1. Which positions are held out depends on
    ``len(items)``, `held_out` and `seed` alone, so parallel lists split alike.
    """
    if not 0 < held_out < 1:
        raise MarsError(f"held-out share: found {held_out}, expected more than 0 and less than 1")
    if len(items) < 2:
        raise MarsError(f"cannot hold out from {len(items)} prompts; expected at least 2")
    count = min(max(1, round(held_out * len(items))), len(items) - 1)
    # A hash, because the random generators of Python and NumPy may change between versions.
    ranked = sorted(
        range(len(items)), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest()
    )
    held = set(ranked[:count])
    return (
        [item for i, item in enumerate(items) if i not in held],
        [item for i, item in enumerate(items) if i in held],
    )


def _builtin(name: str) -> Iterator[dict[str, Any]]:
    text = (files("mars_gguf.convert") / "data" / name).read_text(encoding="utf-8")
    return (json.loads(line) for line in text.splitlines())


def _normalised(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def _prompt_of(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise MarsError(f'{where}: not JSON ({error}); expected {{"prompt": "..."}}') from error
    if not isinstance(entry, dict):
        raise MarsError(f'{where}: found {type(entry).__name__}, expected {{"prompt": "..."}}')
    if "prompt" not in entry:
        found = ", ".join(map(repr, entry)) or "none"
        raise MarsError(f"{where}: no key 'prompt'; keys found: {found}")
    prompt = entry["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise MarsError(f"{where}: 'prompt' is {prompt!r:.40}, expected a non-empty string")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MarsError(f"{where}: 'prompt' holds a lone surrogate, expected Unicode") from error
    return prompt.strip()
