"""Reads pictures within bounds, and puts pictures and films into chat messages."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mars_gguf.errors import MarsError
from mars_gguf.media.picture import Picture
from mars_gguf.modalities import IMAGE, VIDEO

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# Of a JPEG. Programs write about ten; each can be a few bytes that take as long as all the picture.
MAX_SCANS = 64
SECONDS = 60.0  # that a picture may be read for; the server allows less
BLOCK = 4096  # bytes that are decoded at a time: a file that cannot be read any more ends that
# Pixels wide and high that are kept at most: of a picture that a person shows, more than models
# look at, also those that cut it into slices; of one to measure with, and of a frame of a film.
SHOWN_SIDE, MEASURED_SIDE = 2048, 1024
MAX_TOGETHER = 1 << 28  # pixels of the pictures that are read as one film, as they are stored
STRIP = 1 << 20  # pixels whose colours are converted at a time
ORIENTATION = 0x112  # in EXIF: 1 is upright, up to 8 turned or mirrored


def load_image(path: str | PathLike[str], longest_side: int | None = None) -> Image.Image:
    """Loads one picture from a file, as `decode_image` does, scaled down to at most
    ``longest_side`` pixels wide and high.

    Raises MarsError if there is no such file, too.
    """
    with picture_file(path) as file:
        image = decode_image(file, str(path))
    if longest_side is not None:
        image.thumbnail((longest_side, longest_side))
    return image


def load_images(paths: Sequence[str | PathLike[str]], longest_side: int) -> list[Image.Image]:
    """Loads the pictures of one film, each as `load_image` does.

    Raises MarsError, before any is decoded also for more than MAX_TOGETHER pixels in all.
    """
    total = 0
    for path in paths:
        name = str(path)
        with (
            picture_file(path) as file,
            readable(file, name) as timed,
            open_image(timed, name) as opened,
        ):
            total += opened.width * opened.height
        if total > MAX_TOGETHER:
            raise MarsError(
                f"{path}: found {total} pixels in the pictures up to this one, expected at most "
                f"{MAX_TOGETHER} in one film; scale them down first"
            )
    return [load_image(path, longest_side) for path in paths]


@contextmanager
def picture_file(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Opens the file of a picture. Raises MarsError if there is none that can be read."""
    path = Path(path)
    if not path.exists():
        raise MarsError(f"{path}: no such file; expected a picture ({', '.join(FORMATS)})")
    if not path.is_file():
        raise MarsError(f"{path}: not a file; expected a picture ({', '.join(FORMATS)})")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise MarsError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(
    file: BinaryIO, name: str, max_pixels: int | None = None, seconds: float = SECONDS
) -> Image.Image:
    """Decodes the picture in ``file`` as RGB, upright (EXIF orientation applied), transparency over
    white; messages call it ``name``.

    The format is told from the content; of an animation it is the first frame. Nothing is decoded
    before the size is known to be at most ``max_pixels`` (default: ``PIL.Image.MAX_IMAGE_PIXELS``),
    and nothing is read after ``seconds``.

    Raises MarsError if it is not a picture in one of `FORMATS`, damaged, too large, or takes too
    long.
    """
    with readable(file, name, seconds) as timed:
        with open_image(timed, name, max_pixels) as image:
            image.load()
            turned = orientation(image)
            colours = _rgb(image)
        del image  # a large picture is in memory twice, not three times
        colours.info.clear()  # of what the file carried along, EXIF data among it
        if turned != 1:
            colours.getexif()[ORIENTATION] = turned
            ImageOps.exif_transpose(colours, in_place=True)
        return colours


class _Jpeg(JpegImageFile):
    """A JPEG of which the one picture is looked at, and of EXIF data what turns it: what else
    Pillow would read of them may be so odd that it reads nothing."""

    def _read_dpi_from_exif(self) -> None:
        pass


class _Timed:
    """A file that cannot be read any more when it is too late: decoders of some formats go on for
    as long as a file has bytes."""

    def __init__(self, file: BinaryIO, name: str, seconds: float) -> None:
        self.file, self.name, self.ends = file, name, time.monotonic() + seconds

    def read(self, size: int = -1) -> bytes:
        if time.monotonic() >= self.ends:
            raise MarsError(f"{self.name}: takes too long to decode; shrink it first")
        return self.file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def readable(file: BinaryIO, name: str, seconds: float = SECONDS) -> Iterator[BinaryIO]:
    """Gives the picture in ``file``, called ``name``, to be read for ``seconds``, and makes a
    MarsError of all that Pillow raises over it."""
    try:
        yield cast(BinaryIO, _Timed(file, name, seconds))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MarsError(f"{name}: picture too large: {error}") from error
    except UnidentifiedImageError as error:
        raise MarsError(
            f"{name}: not a picture; found {file.seek(0, io.SEEK_END)} bytes of something else, "
            f"expected {', '.join(FORMATS)}; convert it first"
        ) from error
    except (MarsError, MemoryError):
        raise
    except Exception as error:  # there is no list of what Pillow raises, AssertionError included
        raise MarsError(
            f"{name}: the picture is truncated or damaged, or cannot be read "
            f"({str(error) or type(error).__name__}); "
            "open it in another program and save it again"
        ) from error


def open_image(file: BinaryIO, name: str, max_pixels: int | None = None) -> ImageFile.ImageFile:
    """Opens the picture in ``file``, called ``name`` in messages, without decoding it yet.

    Raises MarsError for more than ``max_pixels`` (default: ``PIL.Image.MAX_IMAGE_PIXELS``) and for
    a JPEG of more than MAX_SCANS scans or without an end, and what Pillow raises.
    """
    jpeg = file.read(3) == b"\xff\xd8\xff"
    file.seek(0)
    image = _Jpeg(file) if jpeg else Image.open(file, formats=FORMATS)
    image.decodermaxblock = BLOCK
    require_size(image.size, name, Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels)
    if jpeg:
        position = file.tell()
        file.seek(0)
        scans, ended = count_scans(file.read())
        file.seek(position)
        if not ended:
            raise OSError("a JPEG without an end")
        if scans > MAX_SCANS:
            raise MarsError(
                f"{name}: found a JPEG of {scans} scans, expected at most {MAX_SCANS}; "
                "open it in another program and save it again"
            )
    return image


def require_size(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    """Raises MarsError for a picture of more than ``max_pixels``, None: of any."""
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise MarsError(
            f"{name}: picture too large: found {width} x {height} = {width * height} "
            f"pixels, expected at most {max_pixels}; scale it down first"
        )


def orientation(image: Image.Image) -> int:
    """Reads how the picture is turned from its EXIF data; 1 if it is upright, or that cannot be
    read."""
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:  # whatever Pillow meets in what a camera or an attacker wrote
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # that begins a segment; not within pixels


def count_scans(jpeg: bytes) -> tuple[int, bool]:
    """Counts the scans of a JPEG up to its end, and says whether it has one; more may follow in
    what it carries along."""
    scans, position = 0, 2
    while (found := _MARKER.search(jpeg, position)) is not None and found[0] != b"\xff\xd9":
        scans += found[0] == b"\xff\xda"
        position = found.end() + int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
    return scans, found is not None


def _rgb(image: Image.Image) -> Image.Image:
    """Converts a picture to RGB, in strips: what lies between takes several times as much."""
    rows = max(STRIP // max(image.width, 1), 1)
    if image.height <= rows:
        return _strip(image)
    found = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        found.paste(_strip(image.crop((0, top, image.width, bottom))), (0, top))
    return found


def _strip(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def data_url(image: Image.Image) -> str:
    """Writes the picture as a ``data:image/png;base64,...`` URL, as messages over HTTP carry it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # more takes ten times as long, of a large photo
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def url_of(picture: Picture) -> str:
    """The data URL of a picture that a message carries, for ``json.dumps(..., default=url_of)``."""
    return data_url(Image.frombytes("RGB", (picture.width, picture.height), picture.rgb))


def url_part(image: Image.Image) -> dict[str, Any]:
    """Makes the part of a chat message that shows one picture to any server or handler."""
    return {"type": IMAGE.part, IMAGE.part: {"url": data_url(image)}}


def pixels_of(image: Image.Image) -> Picture:
    """The pixels of a picture, as messages carry them to a SteeredLlama."""
    image = image if image.mode == "RGB" else _strip(image)
    return Picture(*image.size, image.tobytes())


def picture_part(image: Image.Image) -> dict[str, Any]:
    """Makes the part of a chat message that shows one picture to a SteeredLlama."""
    return {"type": IMAGE.part, IMAGE.part: {"url": pixels_of(image)}}


def video_part(frames: Sequence[Image.Image]) -> dict[str, Any]:
    """Makes the part of a chat message that shows the frames of one film."""
    return {"type": VIDEO.part, VIDEO.part: [pixels_of(frame) for frame in frames]}


def user_message(
    text: str, images: Sequence[Image.Image] = (), video: Sequence[Image.Image] = ()
) -> dict[str, Any]:
    """Makes a chat message of the user: pictures first, then the frames of a film, then text."""
    media = [picture_part(image) for image in images]
    return message_of_parts(text, [*media, video_part(video)] if video else media)


def message_of_parts(text: str, media: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes the same of parts that `picture_part` and `video_part` made."""
    if not media:
        return {"role": "user", "content": text}
    words = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [*media, *words]}
