from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mars_gguf.convert import neutral
from mars_gguf.convert.neutral import (
    drawn_image,
    frames,
    neutral_images,
    noise_image,
    read_images,
)
from mars_gguf.errors import MarsError
from mars_gguf.media.images import load_image

KINDS: tuple[neutral.Kind, ...] = ("noise", "drawn")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


ENCODED = [encoded(halves(), form) for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF")]


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


@pytest.mark.parametrize("make", [noise_image, drawn_image])
def test_one_picture_is_a_function_of_the_generator_state(make):
    again = [make(np.random.default_rng(3), 48) for _ in range(2)]
    assert again[0] == again[1]
    rng = np.random.default_rng(3)
    assert len({make(rng, 48).tobytes() for _ in range(20)}) == 20


def test_noise_covers_the_colours():
    means = np.array([pixels(image).mean((0, 1)) for image in neutral_images("noise", 120, 32, 0)])
    assert (abs(means.mean(0) - 127.5) < 20).all()
    assert (means.std(0) > 25).all()


def test_written_words_stand_out_from_their_ground():
    for seed in range(40):
        image = neutral.DRAWN[2](np.random.default_rng(seed), 224).convert("L")
        assert np.ptp(pixels(image)) > 60


@pytest.mark.parametrize("kind", KINDS)
def test_frames_repeat_themselves_and_all_differ(kind):
    for seed in range(8):
        views = frames(kind, 6, 96, seed)
        assert views == frames(kind, 6, 96, seed)
        assert [view.size for view in views] == [(96, 96)] * 6
        assert len({view.tobytes() for view in views}) == 6


def test_frames_move_steadily_over_one_picture():
    def difference(a: Image.Image, b: Image.Image) -> float:
        x, y = (pixels(image) / pixels(image).mean() for image in (a, b))
        return float(abs(x - y).mean())

    steps, whole_way, other_pictures = [], [], []
    for seed in range(30):
        views = frames("drawn", 6, 96, seed)
        steps += [difference(a, b) for a, b in itertools.pairwise(views)]
        whole_way.append(difference(views[0], views[-1]))
        other_pictures.append(difference(views[0], frames("drawn", 1, 96, seed + 1000)[0]))
    assert np.mean(steps) < 0.6 * np.mean(whole_way)
    assert np.mean(whole_way) < 0.6 * np.mean(other_pictures)


def test_an_unknown_kind_and_a_tiny_size_are_refused():
    with pytest.raises(MarsError, match="found 'photo', expected 'noise' or 'drawn'"):
        neutral_images("photo", 1, 64, 0)  # type: ignore[arg-type]
    with pytest.raises(MarsError, match="found 8 pixels, expected at least 32"):
        frames("drawn", 2, 8, 0)


# Pictures from disk


@pytest.mark.parametrize("data", ENCODED)
def test_every_format_is_read_as_rgb_whatever_its_name(tmp_path, data):
    path = tmp_path / "picture.dat"
    path.write_bytes(data)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert abs(pixels(image)[10, 5] - RED).max() < 12
    assert abs(pixels(image)[10, 35] - BLUE).max() < 12


def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    halves().save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert image.size == (20, 40)
    assert image.getpixel((10, 5)) == RED and image.getpixel((10, 35)) == BLUE


def test_an_animation_is_read_as_its_first_frame(tmp_path):
    red, blue = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert load_image(tmp_path / "a.gif").getpixel((4, 4)) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 255))
    image.putpixel((3, 0), (0, 0, 0, 0))
    image.convert(mode).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.getpixel((3, 0)) == (255, 255, 255)
    assert loaded.getpixel((0, 0)) == (0, 0, 0)


def test_sixteen_bit_grey_keeps_its_tones(tmp_path):
    tones = np.arange(256, dtype=np.uint16)[None] * 257
    Image.fromarray(tones).save(tmp_path / "a.png")
    assert abs(pixels(load_image(tmp_path / "a.png"))[0, :, 0] - np.arange(256)).max() <= 1


def test_a_missing_file_a_folder_and_a_text_are_refused_by_name(tmp_path):
    with pytest.raises(MarsError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(MarsError, match="not a file"):
        load_image(tmp_path)
    for content in (b"", b"hello, I am a text\n"):
        path = tmp_path / "text.png"
        path.write_bytes(content)
        with pytest.raises(MarsError, match=rf"text\.png: not a picture; found {len(content)} b"):
            load_image(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_truncated_picture_is_refused(tmp_path, form):
    data = encoded(neutral_images("drawn", 1, 128, 0)[0], form)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MarsError, match="half: .*(truncated or damaged|not a picture)"):
        load_image(path)


def test_a_png_with_a_damaged_chunk_is_refused(tmp_path):
    data = bytearray(encoded(Image.new("P", (4, 1)), "PNG"))
    data[data.index(b"IDAT") - 1] = 0  # the length of the chunk
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(MarsError, match=r"a\.png: the picture is truncated or damaged"):
        load_image(tmp_path / "a.png")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_picture_or_a_clear_error_and_nothing_else(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(ENCODED)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "picture"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = load_image(path)
    except MarsError as error:
        assert str(path) in str(error)
    else:
        assert image.mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_above_the_pixel_limit_is_refused_with_the_numbers(tmp_path, monkeypatch):
    halves((40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert load_image(tmp_path / "a.png").size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    with pytest.raises(MarsError, match="found 40 x 30 = 1200 pixels, expected at most 1199"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MarsError, match=r"a\.png: picture too large: .*1200 pixels.* 200 "):
        load_image(tmp_path / "a.png")


def test_a_bomb_is_refused_before_its_pixels_are_decoded(tmp_path):
    data = bytearray(ENCODED[0])
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(MarsError, match="too large: .*10000000000 pixels"):
        load_image(tmp_path / "bomb.png")


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
