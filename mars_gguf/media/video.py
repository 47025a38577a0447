"""Reads the frames of a video file, by ffmpeg or by PyAV.

llama.cpp's own helper (tools/mtmd/mtmd-helper.cpp) runs ffmpeg too, but takes the size of frames
from before their rotation, so that a film held upright comes out scrambled, and waits for ever when
ffmpeg has much to complain of. Here ffmpeg hands over pictures that carry their own size.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeVar

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
    file = Path(path)
    if not file.is_file():
        raise MarsError(f"{path}: no such file; expected a video")
    # An absolute path: nothing in its name is an option or a protocol to ffmpeg.
    file = file.absolute()
    if not file.stat().st_size:
        raise MarsError(f"{path}: the file is empty, expected a video")
    decode = _decode_with_ffmpeg if _has_ffmpeg() else _decode_with_pyav
    ends = time.monotonic() + seconds
    try:
        # Decoders count the margins that they give a frame, some hundred pixels wide.
        frames, total = decode(file, fps, max_frames, 2 * max_pixels + (1 << 18), ends)
        if time.monotonic() >= ends:
            raise MarsError("decoding it takes too long; cut or shrink it first")
    except MarsError as error:
        raise MarsError(f"{path}: {error}") from error
    if not frames:
        raise MarsError(
            f"{path}: no frames found, expected a video of at most {max_pixels} pixels a frame. "
            "Can a player show it?"
        )
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


# ffmpeg ------------------------------------------------------------------------------------------


def _has_ffmpeg() -> bool:
    return shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


def _decode_with_ffmpeg(
    file: Path, fps: float, max_frames: int, max_pixels: int, ends: float
) -> tuple[list[Image.Image], int]:
    given = ["-v", "quiet", "-format_whitelist", CONTAINERS, "-max_pixels", str(max_pixels)]
    length = _seconds([*given, str(file)], ends - time.monotonic())
    total = int(length * fps)
    rate = fps * max_frames / total if total > max_frames else fps
    size = (
        f"'min({MEASURED_SIDE},iw)':'min({MEASURED_SIDE},ih)':force_original_aspect_ratio=decrease"
    )
    command = ["ffmpeg", "-nostdin", *given, "-i", str(file), "-vf", f"fps={rate},scale={size}"]
    command += ["-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(max(ends - time.monotonic(), 0), process.kill)
        watchdog.start()
        try:
            frames, count = _thinned(_read_ppm(process.stdout), max_frames)
        finally:
            watchdog.cancel()
            process.kill()
    return frames, max(total, count)


def _seconds(arguments: list[str], limit: float) -> float:
    """Asks for the length of the video; 0 if it does not say."""
    command = ["ffprobe", "-show_entries", "format=duration", "-of", "json", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=max(limit, 0)
        )
        return max(float(json.loads(done.stdout)["format"]["duration"]), 0.0)
    except (ValueError, LookupError, subprocess.TimeoutExpired):
        return 0.0


def _read_ppm(stream: IO[bytes]) -> Iterator[Image.Image]:
    """Reads pictures as ffmpeg writes them: "P6\\n", width, height, "\\n255\\n", the pixels."""
    while stream.readline() == b"P6\n":
        width, height = map(int, stream.readline().split())
        stream.readline()
        pixels = stream.read(3 * width * height)
        if len(pixels) < 3 * width * height:
            return
        yield Image.frombytes("RGB", (width, height), pixels)


# PyAV --------------------------------------------------------------------------------------------


def _decode_with_pyav(
    file: Path, fps: float, max_frames: int, max_pixels: int, ends: float
) -> tuple[list[Image.Image], int]:
    try:
        import av
    except ImportError as error:
        raise MarsError(
            "nothing to read videos with. Install ffmpeg (with ffprobe), or PyAV: "
            'pip install "mars-gguf[video]"'
        ) from error
    try:
        with av.open(str(file), options={"format_whitelist": CONTAINERS}) as container:
            if not container.streams.video:
                return [], 0
            codec = container.streams.video[0].codec_context
            codec.options = {"max_pixels": str(max_pixels)}
            return _thinned(_at_rate(container, fps, ends), max_frames)
    except av.FFmpegError as error:
        raise MarsError(f"PyAV cannot read it ({error.strerror}), expected a video") from error


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
