"""Reads frames of an animated GIF or WebP within bounds."""

from __future__ import annotations

from os import PathLike
from typing import Any, BinaryIO

from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile

from mars_gguf.media.images import picture_file, readable, require_size
from mars_gguf.media.video import sample

MAX_FRAMES = 10_000  # what follows is not looked at
MAX_PIXELS = 1 << 24  # of a frame, of which Pillow needs several copies
MAX_TOGETHER = 1 << 30  # pixels of all frames: each is decoded to come to the next


def load_animation(path: str | PathLike[str], count: int, longest_side: int) -> list[Image.Image]:
    """Loads ``count`` frames of an animation, evenly spaced, as RGB, each scaled down to at most
    ``longest_side`` pixels wide and high.

    Raises MarsError if it is none, is damaged, or has more than MAX_PIXELS in a frame or about
    MAX_TOGETHER in all, before those are decoded.
    """
    name, frames = str(path), []
    with picture_file(path) as file, readable(file, name) as timed, _opened(timed, name) as image:
        n_frames = min(getattr(image, "n_frames", 1), MAX_FRAMES)
        most = min(MAX_PIXELS, MAX_TOGETHER // n_frames)
        require_size(image.size, name, most)
        if isinstance(image, _Gif):
            image.most = most
        for i in sample(range(n_frames), count):
            image.seek(i)
            frame = image.convert("RGB")
            frame.thumbnail((longest_side, longest_side))
            frames.append(frame)
    return frames


def _opened(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    gif = file.read(3) == b"GIF"
    file.seek(0)
    return _Gif(file, name) if gif else Image.open(file, formats=("WEBP",))


class _Gif(GifImageFile):
    """A GIF whose frames have at most ``most`` pixels: each may be larger than those before it,
    which Pillow notices as it comes to it, and lets it have ten times as many."""

    most = MAX_PIXELS
    filename: str | bytes = ""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_size":
            require_size(value, str(self.filename), self.most)
        super().__setattr__(name, value)
