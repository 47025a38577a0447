"""Frames of real videos, by both decoders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DEMO, DEMO_MMPROJ, OPTIONS
from PIL import Image

from mars_gguf import demo_model, video
from mars_gguf.errors import MarsError
from mars_gguf.handlers import conversation_handler, prepare
from mars_gguf.llama import SteeredLlama
from mars_gguf.video import load_video, sample

RATE, SECONDS = 8, 5


@pytest.fixture(scope="module")
def mtmd() -> Iterator[Any]:
    handler = conversation_handler(DEMO_MMPROJ)
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, chat_handler=handler, **OPTIONS)
    prepare(llama, handler)
    yield handler.mtmd_ctx
    llama.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds that grow steadily from black to white."""
    path = tmp_path_factory.mktemp("video") / "a clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(RATE * SECONDS):
            grey = np.full((48, 64, 3), 255 * n // (RATE * SECONDS - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
        container.mux(stream.encode())
    return path


@pytest.fixture(params=["ffmpeg", "PyAV"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "PyAV":
        monkeypatch.setattr(video, "_helper_reads_videos", lambda mtmd: False)
    elif not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("ffmpeg is not installed")
    return str(request.param)


def brightness(frames: list[Image.Image]) -> np.ndarray:
    return np.array([np.asarray(frame).mean() for frame in frames])


@pytest.mark.parametrize("fps", [2.0, 4.0])
def test_frames_come_at_the_rate_asked_for_and_in_order(
    decoder: str, clip: Path, mtmd: Any, fps: float
) -> None:
    found = load_video(clip, mtmd, fps=fps)
    assert found.name == "a clip.mp4"
    assert found.total == len(found.frames) == fps * SECONDS
    assert found.frames[0].size == (64, 48)
    steps = np.diff(brightness(found.frames))
    assert np.allclose(steps, 255 / SECONDS / fps, atol=8)


def test_a_long_video_is_sampled_evenly_from_all_of_it(decoder: str, clip: Path, mtmd: Any) -> None:
    found = load_video(clip, mtmd, fps=4, max_frames=4)
    assert (len(found.frames), found.total) == (4, 20)
    shades = brightness(found.frames)
    assert shades[0] < 40
    assert shades[-1] > 180
    assert np.all(np.diff(shades) > 30)


def test_both_decoders_see_the_same(clip: Path, mtmd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("ffprobe"):
        pytest.skip("ffmpeg is not installed")
    first = load_video(clip, mtmd)
    monkeypatch.setattr(video, "_helper_reads_videos", lambda mtmd: False)
    second = load_video(clip, mtmd)
    # ffmpeg rounds the times of a lower frame rate, by up to one frame.
    assert np.allclose(brightness(first.frames), brightness(second.frames), atol=255 / 39 + 2)


def test_large_frames_are_made_smaller(tmp_path: Path, mtmd: Any, decoder: str) -> None:
    path = tmp_path / "large.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 1600, 800, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((800, 1600, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert load_video(path, mtmd).frames[0].size == (1024, 512)


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\x00" * 2000])
def test_what_is_no_video_is_a_clear_error(
    decoder: str, tmp_path: Path, mtmd: Any, content: bytes
) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(MarsError, match="expected a video"):
        load_video(path, mtmd)
    with pytest.raises(MarsError, match="no such file"):
        load_video(tmp_path / "none.mp4", mtmd)


def test_a_file_without_pictures_is_a_clear_error(decoder: str, tmp_path: Path, mtmd: Any) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(MarsError, match="expected a video"):
        load_video(path, mtmd)


@given(st.lists(st.integers(), min_size=1, max_size=50, unique=True), st.integers(1, 60))
def test_a_sample_keeps_order_and_ends(items: list[int], count: int) -> None:
    chosen = sample(items, count)
    assert len(chosen) == min(count, len(items))
    places = [items.index(item) for item in chosen]
    assert places == sorted(set(places))
    assert chosen[0] == items[0]
    assert count == 1 or chosen[-1] == items[-1]
