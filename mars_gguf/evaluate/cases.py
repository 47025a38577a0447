"""Cases: one thing to ask each, in words and with pictures or a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import MEASURED_SIDE, load_image, user_message
from mars_gguf.media.video import load_video

Kind = Literal["harmful", "harmless", "borderline", "vqa"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODALITIES = ("text", "image", "video")
Media = Path | Callable[[], list[Image.Image]]

MAX_PROMPT = 32_768  # characters
MAX_FRAMES = 8  # of a video, evenly spaced
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Case:
    """One thing to ask. `id` is unique within its suite."""

    id: str
    kind: Kind
    modality: str
    prompt: str
    media: tuple[Media, ...] = ()  # files, folders of frames, or what draws pictures when called
    category: str = ""
    answer: str | None = None  # of a question, in one of the forms of `answers`
    intent: str = ""  # what is asked, where the prompt only points at the media
    before: tuple[Mapping[str, str], ...] = ()  # a system prompt and earlier turns
    group: str = ""  # of cases about one thing, which are not independent; suites give the id else

    @property
    def request(self) -> str:
        """What is asked, in words: for judges, not for the model."""
        return self.intent or self.prompt

    def pictures(self) -> list[Image.Image]:
        """The pictures, or the frames of the video, read or drawn now. Raises MarsError."""
        return [picture for source in self.media for picture in _pictures(source, self.modality)]

    def messages(self) -> list[dict[str, Any]]:
        """The chat messages that ask it. Raises MarsError."""
        before = [dict(message) for message in self.before]
        if self.modality == "video":
            return [*before, user_message(self.prompt, video=self.pictures())]
        return [*before, user_message(self.prompt, self.pictures())]

    def as_json(self, media: Sequence[str]) -> dict[str, Any]:
        """The line of a suite file in our own format (see data/CARD.md) whose media are `media`."""
        line = vars(self) | {"media": list(media)}
        return {key: value for key, value in line.items() if value}


Found = Iterator[Case | str]  # cases, and problems in words


# Of files that may be hostile


class Unusable(Exception):
    """A row that cannot be asked; the message says why."""


def usable_prompt(prompt: str) -> str:
    """The prompt. Raises Unusable if it is empty, too long, or no Unicode."""
    if not prompt:
        raise Unusable("empty prompt")
    if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise Unusable("the prompt holds a lone surrogate, expected Unicode")
    if len(prompt) > MAX_PROMPT:
        raise Unusable(f"prompt of {len(prompt)} characters, expected at most {MAX_PROMPT}")
    return prompt


def file_below(folder: Path, names: Sequence[str]) -> Path:
    """The first file of `names` that exists below `folder`, symbolic links resolved. Raises
    Unusable if there is none, or a name leads elsewhere."""
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


def _pictures(source: Media, modality: str) -> list[Image.Image]:
    if not isinstance(source, Path):
        return source()
    if source.is_dir():
        frames = sorted(p for p in source.iterdir() if p.suffix.lower() in FRAME_SUFFIXES)
        if any(not frame.resolve().is_relative_to(source.resolve()) for frame in frames):
            raise MarsError(f"{source}: a frame is a link that leads out of the folder")
        if not frames:
            raise MarsError(f"{source}: no frames; expected pictures ({', '.join(FRAME_SUFFIXES)})")
        pictures = [load_image(frames[i]) for i in _evenly(len(frames))]
    elif modality == "video" and source.suffix.lower() in (".gif", ".webp"):
        pictures = _animation(source)
    elif modality == "video" and source.suffix.lower() not in FRAME_SUFFIXES:
        pictures = load_video(source, max_frames=MAX_FRAMES).frames
    else:
        pictures = [load_image(source)]
    for picture in pictures:
        picture.thumbnail((MEASURED_SIDE, MEASURED_SIDE))
    return pictures


def _animation(path: Path) -> list[Image.Image]:
    first = load_image(path)  # says what is wrong with the file, and bounds its size
    try:
        with Image.open(path, formats=("GIF", "WEBP")) as image:
            count = min(getattr(image, "n_frames", 1), 10_000)
            if count == 1:
                return [first]
            pictures = []
            for i in _evenly(count):
                image.seek(i)
                pictures.append(image.convert("RGB"))
            return pictures
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MarsError(f"{path}: the animation is damaged ({error})") from error


def _evenly(count: int) -> list[int]:
    if count <= MAX_FRAMES:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]
