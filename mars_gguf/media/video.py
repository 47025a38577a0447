"""Reads the frames of a video file, by PyAV, within bounds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media.images import MEASURED_SIDE

FPS, MAX_FRAMES = 4.0, 32
MAX_PIXELS = 1 << 25  # of a frame: 8K has less. Decoders take some 20 bytes for each
# Of libavformat. No playlists: those name further files and addresses.
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,flv,ogg,asf,gif,mxf,nut,ivf,h264,hevc"
T = TypeVar("T")


@dataclass(frozen=True)
class Video:
    """The frames of one film, in order.

    ``total`` is how many the asked frame rate would have given, if that is known to be more.
    """

    name: str
    frames: list[Image.Image]
    total: int


def sample(items: Sequence[T], count: int) -> list[T]:
    """Takes ``count`` of the items, evenly spaced, the first and the last among them; all if
    there are fewer."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def load_video(
    path: str | PathLike[str],
    *,
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    seconds: float = 3600.0,
) -> Video:
    """Loads frames of a video file at ``fps`` a second, at most ``max_frames``, evenly spaced and
    upright, each at most `MEASURED_SIDE` pixels wide and high.

    max_pixels: about the most that a frame in the file may have. seconds: the longest it may take.

    Raises MarsError if the file is missing or has no frames, if it is beyond these limits, or if
    there is nothing to decode it with.
    """
    file, ends = Path(path), time.monotonic() + seconds
    if not file.is_file():
        raise MarsError(f"{path}: no such file; expected a video")
    try:
        import av
    except ImportError as error:
        raise MarsError(
            f"{path}: nothing to read videos with; install PyAV: pip install 'mars-gguf[video]'"
        ) from error
    try:
        # An absolute path: nothing in its name is an option or a protocol.
        with av.open(str(file.absolute()), options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                raise MarsError(f"{path}: it has no pictures, expected a video")
            # Decoders count the margins that they give a frame, some hundred pixels wide.
            most = 2 * max_pixels + (1 << 18)
            container.streams.video[0].codec_context.options = {"max_pixels": str(most)}
            frames, total = _thinned(_at_rate(container, fps, ends), max_frames)
    except av.FFmpegError as error:
        raise MarsError(
            f"{path}: PyAV cannot read it ({error.strerror}), expected a video of at most "
            f"{max_pixels} pixels a frame. Can a player show it?"
        ) from error
    if not frames:
        raise MarsError(f"{path}: no frames found, expected a video")
    if time.monotonic() >= ends:
        raise MarsError(f"{path}: decoding it takes too long; cut or shrink it first")
    return Video(file.name, sample(frames, max_frames), total)


def _thinned(frames: Iterator[Image.Image], max_frames: int) -> tuple[list[Image.Image], int]:
    """Keeps evenly spaced frames, ``max_frames`` to twice as many, and counts how many came."""
    kept: list[Image.Image] = []
    stride, count = 1, 0
    for frame in frames:
        if count % stride == 0:
            frame.thumbnail((MEASURED_SIDE, MEASURED_SIDE))
            kept.append(frame)
            if len(kept) > 2 * max_frames:
                kept, stride = kept[::2], 2 * stride
        count += 1
    return kept, count


def _at_rate(container: Any, fps: float, ends: float) -> Iterator[Image.Image]:
    step, due = 1 / fps, None
    rate = float(container.streams.video[0].average_rate or 0) or 25.0
    for number, frame in enumerate(container.decode(video=0)):
        if time.monotonic() >= ends:
            return
        at = frame.time if frame.time is not None else number / rate
        if due is None or at >= due - 1e-6:
            due = max(at if due is None else due, at - step) + step
            image = frame.to_image()
            yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
