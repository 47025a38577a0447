from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from bombs import png, taken
from exif import ODD, UPRIGHT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mars_gguf.errors import MarsError
from mars_gguf.media import images
from mars_gguf.media.images import decode_image, load_image, load_images
from mars_gguf.media.picture import Picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


FORMS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
ENCODED = [encoded(halves(), form) for form in FORMS]


@pytest.mark.parametrize("data", ENCODED)
def test_every_format_is_read_as_rgb_whatever_its_name(tmp_path, data):
    path = tmp_path / "picture.dat"
    path.write_bytes(data)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert abs(pixels(image)[10, 5] - RED).max() < 12
    assert abs(pixels(image)[10, 35] - BLUE).max() < 12


@pytest.mark.parametrize("number", range(10))
def test_a_picture_is_turned_upright_by_its_exif_orientation(tmp_path, number):
    exif = Image.Exif()
    exif[0x112] = number
    picture = noise()
    picture.save(tmp_path / "a.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(pixels(load_image(tmp_path / "a.png")), pixels(expected))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF data
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("data", [*ODD.values(), *UPRIGHT.values()], ids=[*ODD, *UPRIGHT])
def test_odd_exif_turns_a_picture_or_does_not_and_never_fails(tmp_path, form, data):
    (tmp_path / "a").write_bytes(encoded(halves(), form, exif=data))
    image = load_image(tmp_path / "a")
    assert image.size == ((20, 40) if data in ODD.values() else (40, 20))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*ODD.values()]), st.integers(6, 60), st.binary(min_size=1, max_size=8))
def test_no_exif_data_keeps_a_picture_from_being_shown(data, place, changed):
    data = data[:place] + changed + data[place + len(changed) :]
    file = io.BytesIO(encoded(halves(), "PNG", exif=data))
    assert decode_image(file, "a picture").size in ((40, 20), (20, 40))


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


def broken_pngs():
    """A PNG whose chunk has another length, and one that lacks the colours it names."""
    data = encoded(Image.new("P", (4, 1)), "PNG")
    length, place = data.index(b"IDAT") - 1, data.index(b"PLTE") - 4
    end = place + 12 + int.from_bytes(data[place : place + 4], "big")
    return [data[:length] + b"\0" + data[length + 1 :], data[:place] + data[end:]]


HALVES = [data[: len(data) // 2] for data in (encoded(noise(), form) for form in FORMS)]


@pytest.mark.parametrize("data", [*HALVES, *broken_pngs()])
def test_a_truncated_or_damaged_picture_is_refused_by_name(tmp_path, data):
    (tmp_path / "half").write_bytes(data)
    with pytest.raises(MarsError, match="half: .*(truncated or damaged|not a picture)"):
        load_image(tmp_path / "half")


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


def test_pictures_of_one_film_are_bounded_together(tmp_path, monkeypatch):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for path in paths:
        halves().save(path)
    monkeypatch.setattr(images, "MAX_TOGETHER", 3 * 40 * 20)
    assert [image.size for image in load_images(paths, 20)] == [(20, 10)] * 3
    monkeypatch.setattr(images, "MAX_TOGETHER", 3 * 40 * 20 - 1)
    paths[0].write_bytes(paths[0].read_bytes()[:-30])  # would be found damaged, were it decoded
    with pytest.raises(MarsError, match=r"2\.png: found 2400 pixels in the pictures up to this"):
        load_images(paths, 20)


def test_a_large_picture_is_in_memory_twice_and_no_more(tmp_path):
    side = 4000
    path = png(tmp_path / "a.png", side)
    assert path.stat().st_size < 100_000
    load = "from mars_gguf.media.images import load_image"
    assert taken(load, f"load_image({str(path)!r}, 64)") < 2.5 * 4 * side**2


def test_colours_are_the_same_in_strips_as_at_once(monkeypatch):
    rgba = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 4), np.uint8))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        grey = np.arange(1200, dtype=np.uint16).reshape(40, 30) * 50
        image = Image.fromarray(grey) if mode == "I;16" else rgba.convert(mode)
        for extra in [{}, {"transparency": 3}] if mode in ("L", "P") else [{}]:
            data = encoded(image, "PNG", **extra)
            monkeypatch.setattr(images, "STRIP", 1 << 20)
            whole = pixels(decode_image(io.BytesIO(data), "a"))
            monkeypatch.setattr(images, "STRIP", 30 * 7)
            assert np.array_equal(pixels(decode_image(io.BytesIO(data), "a")), whole), (mode, extra)


# Decoded


def test_pictures_are_alike_if_their_sizes_and_pixels_are():
    pictures = Picture(2, 1, b"abcdef"), Picture(2, 1, b"abcdef"), Picture(1, 2, b"abcdef")
    first, same, other = pictures
    assert first == same != other
    assert first.sha256 == same.sha256 != other.sha256
    assert len(set(pictures)) == 2
    assert "abc" not in repr(first)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 1), (-2, -1)])
def test_pixels_that_are_not_of_the_size_are_refused(size):
    with pytest.raises(ValueError, match="found 6 bytes"):
        Picture(*size, b"abcdef")
