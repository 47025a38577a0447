"""A case is one thing to ask a model, in words and with pictures or a video."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import (
    MEASURED_SIDE,
    decode_image,
    load_image,
    load_images,
    user_message,
)
from mars_gguf.media.video import load_video, sample
from mars_gguf.modalities import VIDEO

Kind = Literal["harmful", "harmless", "borderline", "vqa"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Medium = Path | Callable[[], list[Image.Image]]
T = TypeVar("T")

MAX_PROMPT = 32_768  # characters
MAX_FRAMES = 8  # of a video, evenly spaced
MAX_PICTURE = 32 * 2**20  # bytes, of one that is stored in a table
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class StoredPicture:
    """Decodes a picture that stands in a table, at ``place``, when called. Raises MarsError."""

    content: bytes
    place: str

    def __call__(self) -> list[Image.Image]:
        if len(self.content) > MAX_PICTURE:
            raise MarsError(
                f"{self.place}: a picture of {len(self.content)} bytes, expected at most "
                f"{MAX_PICTURE}"
            )
        picture = decode_image(io.BytesIO(self.content), self.place)
        picture.thumbnail((MEASURED_SIDE, MEASURED_SIDE))
        return [picture]


@dataclass(frozen=True)
class Case:
    """One thing to ask.

    id: unique within its suite.
    media: files, folders of frames, or what draws or decodes pictures when called.
    answer: of a question, in one of the forms of `answers`.
    intent: what is asked, where the prompt only points at the media.
    before: a system prompt and earlier turns.
    group: names cases about one thing, which are not independent; suites give the id otherwise.
    """

    id: str
    kind: Kind
    modality: str
    prompt: str
    media: tuple[Medium, ...] = ()
    category: str = ""
    answer: str | None = None
    intent: str = ""
    before: tuple[Mapping[str, str], ...] = ()
    group: str = ""

    @property
    def request(self) -> str:
        """The request in words: for judges, not for the model."""
        return self.intent or self.prompt

    def pictures(self) -> list[Image.Image]:
        """Reads or draws the pictures, or the frames of the video. Raises MarsError."""
        return [picture for source in self.media for picture in _pictures(source, self.modality)]

    def messages(self) -> list[dict[str, Any]]:
        """Makes the chat messages that ask it. Raises MarsError."""
        pictures = self.pictures()
        shown = {"video" if self.modality == VIDEO.name else "images": pictures}
        return [*map(dict, self.before), user_message(self.prompt, **shown)]


Found = Iterator[Case | str]  # cases, and problems in words


def by_sort(cases: Iterable[Case]) -> dict[tuple[Kind, str], list[Case]]:
    """Groups cases by kind and modality."""
    found: dict[tuple[Kind, str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.kind, case.modality), []).append(case)
    return found


def evenly(items: Sequence[T], most: int | None) -> list[T]:
    """Takes at most so many of the items, evenly spaced from the first on; all if there are fewer,
    or ``most`` is None."""
    n = len(items)
    return list(items) if most is None or n <= most else [items[i * n // most] for i in range(most)]


class Unusable(Exception):
    """A row that cannot be asked; the message says why."""


def usable_prompt(prompt: str) -> str:
    """Returns the prompt. Raises Unusable if it is empty, too long, or no Unicode."""
    if not prompt:
        raise Unusable("empty prompt")
    if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise Unusable("the prompt holds a lone surrogate, expected Unicode")
    if len(prompt) > MAX_PROMPT:
        raise Unusable(f"prompt of {len(prompt)} characters, expected at most {MAX_PROMPT}")
    return prompt


def file_below(folder: Path, names: Sequence[str]) -> Path:
    """Finds the first file of ``names`` that exists below ``folder``, symbolic links resolved.

    Raises Unusable if there is none, or a name leads elsewhere.
    """
    root = folder.resolve()
    for name in names:
        try:
            path = (root / name).resolve()
            exists = path.exists()
        except (OSError, ValueError, RuntimeError) as error:
            raise Unusable(f"{name!r:.80}: not a path ({error})") from error
        if not name or path == root or not path.is_relative_to(root):
            raise Unusable(f"{name!r:.80} leads out of the suite's folder")
        if exists:
            return path
    raise Unusable(f"{' or '.join(f'{name!r:.80}' for name in names)}: no such file in {root}")


def _pictures(source: Medium, modality: str) -> list[Image.Image]:
    if not isinstance(source, Path):
        return source()
    suffix, film = source.suffix.lower(), modality == VIDEO.name
    if source.is_dir():
        return load_images(sample(_frames(source), MAX_FRAMES), MEASURED_SIDE)
    if film and suffix not in FRAME_SUFFIXES:
        return load_video(source, max_frames=MAX_FRAMES).frames
    return [load_image(source, MEASURED_SIDE)]


def _frames(folder: Path) -> list[Path]:
    frames = sorted(p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES)
    if any(not frame.resolve().is_relative_to(folder.resolve()) for frame in frames):
        raise MarsError(f"{folder}: a frame is a link that leads out of the folder")
    if not frames:
        raise MarsError(f"{folder}: no frames; expected pictures ({', '.join(FRAME_SUFFIXES)})")
    return frames
