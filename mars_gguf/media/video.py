"""Frames of a video file, by ffmpeg or by PyAV.

llama.cpp's own helper (tools/mtmd/mtmd-helper.cpp) runs ffmpeg too, but takes the size of frames
from before their rotation, so that a film held upright comes out scrambled, and waits for ever when
ffmpeg has much to complain of. Here ffmpeg hands over pictures that carry their own size.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image

from mars_gguf.errors import MarsError

FPS, MAX_FRAMES = 4.0, 32
LONGEST_SIDE = 1024
T = TypeVar("T")


@dataclass(frozen=True)
class Video:
    """Frames in order; ``total`` is how many the asked frame rate would have given, if that is
    known to be more."""

    name: str
    frames: list[Image.Image]
    total: int


def sample(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items, evenly spaced, the first and the last among them; all if fewer."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def load_video(
    path: str | PathLike[str], *, fps: float = FPS, max_frames: int = MAX_FRAMES
) -> Video:
    """Frames of a video file at ``fps`` frames a second, at most ``max_frames``, evenly spaced and
    upright, each at most `LONGEST_SIDE` pixels wide and high.

    Raises MarsError if the file is missing or has no frames, or if there is nothing to decode it
    with.
    """
    file = Path(path)
    if not file.is_file():
        raise MarsError(f"{path}: no such file; expected a video")
    # An absolute path: nothing in its name is an option or a protocol to ffmpeg.
    file = file.resolve()
    if not file.stat().st_size:
        raise MarsError(f"{path}: the file is empty, expected a video")
    decode = _decode_with_ffmpeg if _has_ffmpeg() else _decode_with_pyav
    try:
        frames, total = decode(file, fps, max_frames)
    except MarsError as error:
        raise MarsError(f"{path}: {error}") from error
    if not frames:
        raise MarsError(f"{path}: no frames found, expected a video. Can a player show it?")
    return Video(file.name, sample(frames, max_frames), total)


def _thinned(frames: Iterator[Image.Image], max_frames: int) -> tuple[list[Image.Image], int]:
    """Evenly spaced frames, ``max_frames`` to twice as many, without keeping all; how many came."""
    kept: list[Image.Image] = []
    stride, count = 1, 0
    for frame in frames:
        if count % stride == 0:
            frame.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            kept.append(frame)
            if len(kept) > 2 * max_frames:
                kept, stride = kept[::2], 2 * stride
        count += 1
    return kept, count


# ffmpeg ------------------------------------------------------------------------------------------


def _has_ffmpeg() -> bool:
    return shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


def _decode_with_ffmpeg(file: Path, fps: float, max_frames: int) -> tuple[list[Image.Image], int]:
    seconds = _seconds(file)
    total = int(seconds * fps)
    rate = fps * max_frames / total if total > max_frames else fps
    size = f"'min({LONGEST_SIDE},iw)':'min({LONGEST_SIDE},ih)':force_original_aspect_ratio=decrease"
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "quiet",
        "-i",
        str(file),
        "-vf",
        f"fps={rate},scale={size}",
    ]
    command += ["-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            frames, count = _thinned(_read_ppm(process.stdout), max_frames)
        finally:
            process.kill()
    return frames, max(total, count)


def _seconds(file: Path) -> float:
    """Length of the video; 0 if it does not say."""
    done = subprocess.run(
        ["ffprobe", "-v", "quiet", "-show_entries", "format=duration", "-of", "json", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    try:
        return max(float(json.loads(done.stdout)["format"]["duration"]), 0.0)
    except (ValueError, LookupError):
        return 0.0


def _read_ppm(stream: IO[bytes]) -> Iterator[Image.Image]:
    """Pictures as ffmpeg writes them: "P6\\n", width, height, "\\n255\\n", the pixels."""
    while stream.readline() == b"P6\n":
        width, height = map(int, stream.readline().split())
        stream.readline()
        pixels = stream.read(3 * width * height)
        if len(pixels) < 3 * width * height:
            return
        yield Image.frombytes("RGB", (width, height), pixels)


# PyAV --------------------------------------------------------------------------------------------


def _decode_with_pyav(file: Path, fps: float, max_frames: int) -> tuple[list[Image.Image], int]:
    try:
        import av
    except ImportError as error:
        raise MarsError(
            "nothing to read videos with. Install ffmpeg (with ffprobe), or PyAV: "
            'pip install "mars-gguf[video]"'
        ) from error
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                return [], 0
            return _thinned(_at_rate(container, fps), max_frames)
    except av.FFmpegError as error:
        raise MarsError(f"PyAV cannot read it ({error.strerror}), expected a video") from error


def _at_rate(container: Any, fps: float) -> Iterator[Image.Image]:
    step, due = 1 / fps, None
    rate = float(container.streams.video[0].average_rate or 0) or 25.0
    for number, frame in enumerate(container.decode(video=0)):
        time = frame.time if frame.time is not None else number / rate
        if due is None or time >= due - 1e-6:
            due = max(time if due is None else due, time - step) + step
            image = frame.to_image()
            yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
