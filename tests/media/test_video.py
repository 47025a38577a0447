"""Frames of real videos."""

from __future__ import annotations

import io
import struct
import time
import wave
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from bombs import gif
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from suite_files import film, filmed

from mars_gguf.errors import MarsError
from mars_gguf.media.video import load_video, sample

SECONDS = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds that grow steadily from black to white."""
    return film(tmp_path_factory.mktemp("video") / "a clip.mp4", SECONDS)


def brightness(frames: list[Image.Image]) -> np.ndarray:
    return np.array([np.asarray(frame).mean() for frame in frames])


@pytest.mark.parametrize("fps", [2.0, 4.0])
def test_frames_come_at_the_rate_asked_for_and_in_order(clip: Path, fps: float) -> None:
    found = load_video(clip, fps=fps)
    assert found.name == "a clip.mp4"
    assert found.total == len(found.frames) == fps * SECONDS
    assert found.frames[0].size == (64, 48)
    steps = np.diff(brightness(found.frames))
    assert np.allclose(steps, 255 / SECONDS / fps, atol=8)


def test_a_long_video_is_sampled_evenly_from_all_of_it(clip: Path) -> None:
    found = load_video(clip, fps=4, max_frames=4)
    assert (len(found.frames), found.total) == (4, 20)
    shades = brightness(found.frames)
    assert shades[0] < 40
    assert shades[-1] > 180
    assert np.all(np.diff(shades) > 30)


def test_large_frames_are_made_smaller(tmp_path: Path) -> None:
    path = filmed(tmp_path / "large.mp4", [np.zeros((800, 1600, 3), np.uint8)])
    assert load_video(path).frames[0].size == (1024, 512)


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, 8000, 0, "NONE", ""))
        written.writeframes(bytes(1600))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\x00" * 2000, sound()])
def test_what_is_no_video_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(MarsError, match="expected a video"):
        load_video(path)
    with pytest.raises(MarsError, match="no such file"):
        load_video(tmp_path / "none.mp4")


def test_a_playlist_is_no_video_though_what_it_names_is_one(clip: Path) -> None:
    for name, content in (
        ("hls", f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("concat", "ffconcat version 1.0\nfile clip.mp4\n"),
    ):
        path = clip.with_name(name)
        path.write_text(content)
        path.with_name("clip.mp4").write_bytes(clip.read_bytes())
        with pytest.raises(MarsError, match="expected a video"):
            load_video(path)


def test_decoding_has_limits(tmp_path: Path) -> None:
    frames = (np.full((800, 1600, 3), n, np.uint8) for n in range(200))
    path = filmed(tmp_path / "large.mp4", frames, 25)
    assert load_video(path, max_frames=1, max_pixels=1600 * 800).frames
    with pytest.raises(MarsError, match="expected a video"):
        load_video(path, max_pixels=320 * 240)
    began = time.monotonic()
    with pytest.raises(MarsError, match="too long"):
        load_video(path, seconds=0.3)
    assert time.monotonic() < began + 3


def test_a_small_file_of_huge_frames_is_refused(tmp_path: Path) -> None:
    assert load_video(gif(tmp_path / "small.mp4", (4000, 100), *[(1, 1)] * 10)).frames
    with pytest.raises(MarsError, match="expected a video of at most|cannot read it"):
        load_video(gif(tmp_path / "huge.mp4", (9000, 9000), (1, 1)))


def test_a_film_held_upright_comes_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :16] = 255  # top left
    content = bytearray(filmed(tmp_path / "film.mp4", [pixels] * 4).read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = content.rindex(upright)  # of the track: before it is that of the film
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    content[place : place + len(upright)] = clockwise
    (tmp_path / "turned.mp4").write_bytes(content)
    frame = np.asarray(load_video(tmp_path / "turned.mp4").frames[0], float)
    assert frame.shape == (64, 32, 3) and frame[:12, -12:].mean() > 128 > frame[20:].mean()


def test_a_damaged_video_ends(clip: Path, tmp_path: Path) -> None:
    content = bytearray(clip.read_bytes())
    for place in range(300, len(content) - 900, 97):
        content[place] ^= 0xFF
    path = tmp_path / "damaged.avi"
    path.write_bytes(content * 20)
    with suppress(MarsError):
        assert load_video(path).frames


def test_pauses_in_the_times_of_frames_bring_no_extra_ones(tmp_path: Path) -> None:
    path = tmp_path / "pause.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in [*range(40), *range(240, 280)]:  # two seconds, ten of nothing, two seconds
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), n % 256, np.uint8))
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = load_video(path, max_frames=100)
    assert len(found.frames) == found.total == pytest.approx(16, abs=1)


@given(st.lists(st.integers(), min_size=1, max_size=50, unique=True), st.integers(1, 60))
def test_a_sample_keeps_order_and_ends(items: list[int], count: int) -> None:
    chosen = sample(items, count)
    assert len(chosen) == min(count, len(items))
    places = [items.index(item) for item in chosen]
    assert places == sorted(set(places))
    assert chosen[0] == items[0]
    assert count == 1 or chosen[-1] == items[-1]
