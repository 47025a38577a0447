"""Frames of a video file: by llama.cpp's own helper, which runs ffmpeg, or by PyAV."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from llama_cpp import mtmd_cpp
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
    path: str | PathLike[str],
    mtmd: Any,
    *,
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
) -> Video:
    """Frames of a video file at ``fps`` frames a second, at most ``max_frames``, evenly spaced.

    ``mtmd`` is the mtmd context of a chat handler. A frame is at most `LONGEST_SIDE` pixels wide
    and high. Raises MarsError if the file is missing or has no frames, or if there is nothing to
    decode it with.
    """
    file = Path(path)
    if not file.is_file():
        raise MarsError(f"{path}: no such file; expected a video")
    # An absolute path: nothing in its name is an option or a protocol to ffmpeg.
    file = file.resolve()
    if not file.stat().st_size:
        raise MarsError(f"{path}: the file is empty, expected a video")
    try:
        if shutil.which("ffmpeg") and shutil.which("ffprobe") and _helper_reads_videos(mtmd):
            frames, total = _decode_with_ffmpeg(file, mtmd, fps, max_frames)
        else:
            frames, total = _decode_with_pyav(file, fps, max_frames)
    except MarsError as error:
        raise MarsError(f"{path}: {error}") from error
    if not frames:
        raise MarsError(f"{path}: no frames found, expected a video. Can a player show it?")
    return Video(file.name, sample(frames, max_frames), total)


def _helper_reads_videos(mtmd: Any) -> bool:
    return bool(mtmd_cpp.mtmd_helper_support_video(mtmd))


def _shrunk(image: Image.Image) -> Image.Image:
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def _thinned(frames: Iterator[Image.Image], max_frames: int) -> tuple[list[Image.Image], int]:
    """Evenly spaced frames, ``max_frames`` to twice as many, without keeping all; how many came."""
    kept: list[Image.Image] = []
    stride, count = 1, 0
    for frame in frames:
        if count % stride == 0:
            kept.append(_shrunk(frame))
            if len(kept) > 2 * max_frames:
                kept, stride = kept[::2], 2 * stride
        count += 1
    return kept, count


# llama.cpp's helper ------------------------------------------------------------------------------


def _decode_with_ffmpeg(
    file: Path, mtmd: Any, fps: float, max_frames: int
) -> tuple[list[Image.Image], int]:
    params = mtmd_cpp.mtmd_helper_video_init_params_default()
    params.timestamp_interval_ms = 0
    params.fps_target = fps
    video = _open(file, mtmd, params)
    total = mtmd_cpp.mtmd_helper_video_get_info(video).n_frames
    if total > max_frames:  # ffmpeg need not hand over what is then left out
        mtmd_cpp.mtmd_helper_video_free(video)
        params.fps_target = fps * max_frames / total
        video = _open(file, mtmd, params)
    try:
        frames, count = _thinned(_frames(video), max_frames)
    finally:
        mtmd_cpp.mtmd_helper_video_free(video)
    return frames, max(total, count)


def _open(file: Path, mtmd: Any, params: Any) -> Any:
    video = mtmd_cpp.mtmd_helper_video_init(mtmd, str(file).encode(), params)
    if video is None:
        raise MarsError("ffmpeg cannot read it, expected a video. Can a player show it?")
    return video


def _frames(video: Any) -> Iterator[Image.Image]:
    bitmap, text = mtmd_cpp.mtmd_bitmap_p_ctypes(), ctypes.c_char_p()
    while True:
        code = mtmd_cpp.mtmd_helper_video_read_next(video, ctypes.byref(bitmap), ctypes.byref(text))
        if code != 0:
            return
        if bitmap.value is None:
            continue  # words between frames, such as the time
        try:
            size = mtmd_cpp.mtmd_bitmap_get_nx(bitmap), mtmd_cpp.mtmd_bitmap_get_ny(bitmap)
            data = mtmd_cpp.mtmd_bitmap_get_data(bitmap)
            pixels = ctypes.string_at(data, mtmd_cpp.mtmd_bitmap_get_n_bytes(bitmap))
        finally:
            mtmd_cpp.mtmd_bitmap_free(bitmap)
        yield Image.frombytes("RGB", size, pixels)


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
    due = None
    for frame in container.decode(video=0):
        time = frame.time or 0.0
        if due is None or time >= due - 1e-6:
            due = (time if due is None else due) + 1 / fps
            yield frame.to_image()
