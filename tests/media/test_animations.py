"""Frames of animations, within bounds of pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from bombs import gif, taken
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_gguf.errors import MarsError
from mars_gguf.media import animations
from mars_gguf.media.animations import load_animation


def shades(path: Path, count: int, size: tuple[int, int] = (40, 20), **options: object) -> Path:
    frames = [Image.new("RGB", size, (10 * n, 0, 0)) for n in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_frames_are_evenly_spaced_and_scaled_down(tmp_path: Path, name: str) -> None:
    path = shades(tmp_path / name, 10, lossless=True)
    frames = load_animation(path, 4, 20)
    assert [frame.size for frame in frames] == [(20, 10)] * 4
    assert [frame.getpixel((5, 5)) for frame in frames] == [(10 * n, 0, 0) for n in (0, 3, 6, 9)]
    assert len(load_animation(path, 40, 20)) == 10


@pytest.mark.parametrize(
    ("canvas", "frames"),
    [
        ((9000, 9000), [(1, 1)] * 8),
        ((8, 8), [(1, 1), (60_000, 60_000)]),
        ((8, 8), [(1, 1), (13_000, 13_000), (1, 1)]),
        ((8, 8), [(1, 1), (9000, 9000), (1, 1)]),
        ((4000, 4000), [(1, 1)] * 300),
        ((8, 8), [(1, 1), (4000, 4000)] * 150),
    ],
    ids=str,
)
def test_a_small_file_of_huge_frames_is_refused_and_takes_no_memory(
    tmp_path: Path, canvas: tuple[int, int], frames: list[tuple[int, int]]
) -> None:
    path = gif(tmp_path / "bomb.gif", canvas, *frames)
    assert path.stat().st_size < 10_000
    code = f"""
try:
    load_animation({str(path)!r}, 8, 1024)
except MarsError as error:
    assert "bomb.gif: picture too large" in str(error), error
else:
    raise AssertionError("it was decoded")
"""
    load = "from mars_gguf.errors import MarsError\n"
    load += "from mars_gguf.media.animations import load_animation\n"
    assert taken(load, code) < 32 << 20


def test_frames_are_not_kept_at_their_full_size(tmp_path: Path) -> None:
    path = gif(tmp_path / "a.gif", (3000, 3000), *[(1, 1)] * 8)
    load = "from mars_gguf.media.animations import load_animation"
    assert taken(load, f"load_animation({str(path)!r}, 8, 64)") < 6 * 4 * 3000**2


def test_a_webp_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shades(tmp_path / "a.webp", 3)
    monkeypatch.setattr(animations, "MAX_TOGETHER", 3 * 40 * 20)
    assert len(load_animation(path, 3, 64)) == 3
    monkeypatch.setattr(animations, "MAX_TOGETHER", 3 * 40 * 20 - 1)
    with pytest.raises(MarsError, match=r"a\.webp: picture too large: found 40 x 20"):
        load_animation(path, 3, 64)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_give_frames_or_a_clear_error_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    form = data.draw(st.sampled_from(["GIF", "WEBP"]))
    content = bytearray(shades(path, 4, (12, 8), format=form).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        frames = load_animation(path, 3, 64)
    except MarsError as error:
        assert str(path) in str(error)
    else:
        assert all(frame.mode == "RGB" for frame in frames)
