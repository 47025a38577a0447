from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_gguf.convert import neutral
from mars_gguf.convert.neutral import (
    frames,
    neutral_images,
    read_images,
)
from mars_gguf.errors import MarsError

KINDS = "noise", "drawn"
RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


# Pictures of the converter's own


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(neutral.MIN_SIDE, 160))
def test_every_seed_and_size_gives_rgb_squares_that_are_not_plain(seed, size):
    for kind in KINDS:
        for image in neutral_images(kind, 4, size, seed):
            assert (image.mode, image.size) == ("RGB", (size, size))
            assert pixels(image).std(axis=(0, 1)).max() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_depend_on_the_seed_alone_and_all_differ(kind):
    first = neutral_images(kind, 12, 64, seed=5)
    assert neutral_images(kind, 4, 64, seed=5) == first[:4]
    everything = first + neutral_images(kind, 12, 64, seed=6)
    assert len({image.tobytes() for image in everything}) == 24


def test_written_words_stand_out_from_their_ground():
    for seed in range(40):
        image = neutral.PAINTERS["drawn"][2](np.random.default_rng(seed), 224).convert("L")
        assert np.ptp(pixels(image)) > 60


@pytest.mark.parametrize("kind", KINDS)
def test_frames_repeat_themselves_and_all_differ(kind):
    for seed in range(8):
        views = frames(kind, 6, 96, seed)
        assert views == frames(kind, 6, 96, seed)
        assert [view.size for view in views] == [(96, 96)] * 6
        assert len({view.tobytes() for view in views}) == 6


def test_a_tiny_size_is_refused():
    with pytest.raises(MarsError, match="found 8 pixels, expected at least 32"):
        frames("drawn", 2, 8, 0)


# Pictures from disk


def test_a_folder_is_read_by_name_and_large_pictures_are_scaled_down(tmp_path):
    Image.new("RGB", (3000, 1500), RED).save(tmp_path / "b.PNG")
    Image.new("RGB", (10, 20), BLUE).save(tmp_path / "a.webp", lossless=True)
    for name in "cdef":
        halves((1024, 1)).save(tmp_path / f"{name}.bmp")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._b.png").write_bytes(b"resource fork")
    (tmp_path / "empty").mkdir()
    images = read_images(tmp_path)["own"]
    assert [image.size for image in images] == [(10, 20), (1024, 512), *[(1024, 1)] * 4]
    assert images[0].getpixel((0, 0)) == BLUE


def test_every_folder_in_a_folder_is_a_kind_of_its_name(tmp_path):
    colours = {"cats": (1, 2, 3), "charts": (4, 5, 6)}
    for name, colour in colours.items():
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i in range(neutral.MIN_PICTURES + len(name)):
            Image.new("RGB", (8 + i, 8), colour).save(tmp_path / name / f"{i:02}.png")
    (tmp_path / ".hidden").mkdir()
    halves().save(tmp_path / ".hidden" / "a.png")
    found = read_images(tmp_path)
    assert list(found) == ["cats", "charts"]
    for name, images in found.items():
        assert [image.width for image in images] == [8 + i for i in range(6 + len(name))]
        assert {image.getpixel((0, 0)) for image in images} == {colours[name]}


def test_a_folder_called_own_goes_with_the_pictures_beside_it(tmp_path):
    (tmp_path / "own").mkdir()
    for i in range(neutral.MIN_PICTURES):
        Image.new("RGB", (8, 8), RED).save(tmp_path / f"{i}.png")
        Image.new("RGB", (8, 8), BLUE).save(tmp_path / "own" / f"{i}.png")
    (images,) = read_images(tmp_path).values()
    assert [image.getpixel((0, 0)) for image in images] == [RED] * 6 + [BLUE] * 6


def test_a_folder_without_pictures_with_few_or_with_a_bad_one_is_refused(tmp_path):
    with pytest.raises(MarsError, match="no such folder"):
        read_images(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("not a picture")
    with pytest.raises(MarsError, match="no pictures; found 1 other entries, expected .*png"):
        read_images(tmp_path)
    (tmp_path / "cats").mkdir()
    for i in range(5):
        halves().save(tmp_path / "cats" / f"{i}.png")
    with pytest.raises(MarsError, match="found 5 pictures of kind 'cats', expected at least 6"):
        read_images(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"not a picture")
    with pytest.raises(MarsError, match=r"b\.jpg: not a picture"):
        read_images(tmp_path)
