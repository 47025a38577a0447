"""Pictures that are small files and a long work: refused, or given up in time."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models
import openai
import pytest
from attacks.fields import chunk, url_of
from models import DEMO, DEMO_MMPROJ
from PIL import Image, ImageCms
from servers import ONE_THREAD, Server, picture_message, running

from mars_gguf.errors import MarsError
from mars_gguf.media.images import MAX_SCANS, count_scans, decode_image, load_image
from mars_gguf.server import decoders
from mars_gguf.server.http_errors import RequestError

SIDE = 2048


def progressive(scans: int | None = None, side: int = SIDE) -> bytes:
    """A white JPEG of so many scans: its last one, of a few bytes, again and again."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    more = 0 if scans is None else scans - count_scans(jpeg)[0]
    return jpeg[:-2] + last * more + jpeg[-2:]


def png(*chunks: bytes) -> bytes:
    """A PNG of 8 x 8 black pixels with ``chunks`` before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND")


def gif(n_comments: int) -> bytes:
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    content = file.getvalue()
    first = content.index(b",")
    return content[:first] + b"!\xfe\1a\0" * n_comments + content[first:]


def bmp() -> bytes:
    """4096 x 4096 pixels in ten million runs of one, which Pillow reads in Python."""
    runs, colours = b"\1\1" * 10_000_000, bytes(1024)
    head = struct.pack("<IiiHHIIiiII", 40, 4096, 4096, 1, 8, 1, len(runs), 0, 0, 256, 0)
    size = 14 + len(head) + len(colours)
    return b"BM" + struct.pack("<IHHI", size + len(runs), 0, 0, size) + head + colours + runs


def exif(n_tags: int) -> bytes:
    """That the picture lies on its side, and tags of more than the file has."""
    tags = [struct.pack("<HHII", 0x112, 3, 1, 6)]
    tags += [struct.pack("<HHII", 0x8000 + n, 7, 1 << 30, 0) for n in range(n_tags)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


LONG = {
    "comments": lambda: gif(4_000_000),
    "texts": lambda: png(chunk(b"tEXt", b"a\0") * 1_300_000),
    "unknown chunks": lambda: png(chunk(b"abCd") * 1_600_000),
    "runs": bmp,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--demo", *ONE_THREAD, "--max_media_bytes", str(24 << 20)]
    with running(tmp_path_factory.mktemp("server"), *flags) as server:
        yield server


def message(picture: bytes) -> dict[str, Any]:
    return picture_message(url_of(picture))


def show(server: Server, picture: bytes) -> float:
    """Seconds that a reply to a picture takes."""
    began = time.monotonic()
    reply: Any = server.client.chat.completions.create(
        model="any",
        messages=[message(picture)],  # type: ignore[list-item]
        max_tokens=2,
    )
    assert reply.mars["modality"] == "image"
    return time.monotonic() - began


def test_a_jpeg_of_thousands_of_scans_is_not_decoded(server: Server, tmp_path: Path) -> None:
    jpeg = progressive(20_000)
    assert len(jpeg) < 700_000
    began = time.monotonic()
    with pytest.raises(openai.BadRequestError, match="20000 scans, expected at most 64"):
        show(server, jpeg)
    (tmp_path / "long.jpg").write_bytes(jpeg)
    with pytest.raises(MarsError, match=r"long\.jpg: found a JPEG of 20000 scans"):
        load_image(tmp_path / "long.jpg")
    llama = models.tapped(DEMO, mmproj=DEMO_MMPROJ, **models.OPTIONS)
    with pytest.raises(MarsError, match="picture 1: found a JPEG of 20000 scans"):
        llama.chunks([message(jpeg)])
    llama.close()
    assert time.monotonic() - began < 5


def test_a_jpeg_of_as_many_scans_as_are_taken_is_decoded_soon(server: Server) -> None:
    assert show(server, progressive(MAX_SCANS)) < 5
    with pytest.raises(openai.BadRequestError, match=f"{MAX_SCANS + 1} scans"):
        show(server, progressive(MAX_SCANS + 1))


def test_scans_are_those_of_the_picture_and_not_of_what_it_carries_along(tmp_path: Path) -> None:
    plain = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(plain, "JPEG")
    scan, film = b"\xff\xda\0\x0c", b"a film that a telephone appends "
    comment = b"\xff\xfe" + struct.pack(">H", 402) + scan * 100
    for jpeg, scans in (
        (plain.getvalue(), 1),
        (progressive(side=64), 10),
        (plain.getvalue()[:2] + comment + plain.getvalue()[2:], 1),
        (plain.getvalue() + film + scan * 100, 1),
        (progressive(40, 64) + film, 40),
        (b"\xff\xd8", 0),
    ):
        assert count_scans(jpeg)[0] == scans
    (tmp_path / "moving.jpg").write_bytes(plain.getvalue() + film + scan * 100)
    assert load_image(tmp_path / "moving.jpg").size == (64, 64)


@pytest.mark.parametrize("kind", LONG)
def test_decoding_ends_when_the_time_for_it_has_passed(kind: str) -> None:
    picture = LONG[kind]()
    limits = {"max_pixels": 16 << 20, "most_pixels": 16 << 20}
    began = time.monotonic()
    with pytest.raises(RequestError, match="takes too long to decode"):
        decoders.decode(limits, began + 0.5, picture)
    with pytest.raises(MarsError, match="takes too long to decode"):
        decode_image(io.BytesIO(picture), "a picture", seconds=0.5)
    assert time.monotonic() - began < 5


def test_a_picture_that_brings_its_decoder_down_brings_no_server_down(server: Server) -> None:
    slow, plain = io.BytesIO(LONG["comments"]()), io.BytesIO()
    models.picture(1).save(plain, "PNG")
    show(server, plain.getvalue())  # there is a worker now
    with ThreadPoolExecutor(1) as thread:
        shown = thread.submit(show, server, slow.getvalue())
        while not shown.done():
            time.sleep(0.5)
            for worker in server.children():
                os.kill(worker, signal.SIGSEGV)
        with pytest.raises(openai.BadRequestError, match=r"its decoder ended \(SIGSEGV\)"):
            shown.result()
    assert show(server, plain.getvalue()) < 5
    assert "a decoder of pictures ended (SIGSEGV)" in server.log.read_text()


def test_pictures_whose_clients_have_left_keep_no_other_waiting(server: Server) -> None:
    picture = models.picture(1)
    file = io.BytesIO()
    picture.save(file, "PNG")
    body = json.dumps({"messages": [message(LONG["comments"]())], "max_tokens": 2}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
        f"Content-Length: {len(body)}\n\n"
    )
    connections = [server.begin(head, body) for _ in range(2)]
    time.sleep(1)
    for connection in connections:
        connection.close()
    assert show(server, file.getvalue()) < 5


def test_damaged_notes_about_a_picture_fill_no_log(server: Server) -> None:
    before = len(server.log.read_text())
    assert show(server, png(chunk(b"eXIf", exif(30_000)))) < 5
    assert len(server.log.read_text()) < before + 10_000


def test_no_colour_profile_keeps_a_picture_from_being_shown() -> None:
    whole = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number in range(1000):
        rng, icc, file = random.Random(number), bytearray(whole), io.BytesIO()
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(icc))
            icc[at : at + rng.randrange(9)] = rng.randbytes(rng.choice((0, 1, 4, 400)))
        mode, form = rng.choice((("RGB", "PNG"), ("L", "WEBP"), ("CMYK", "JPEG"), ("RGB", "JPEG")))
        Image.new(mode, (24, 16)).convert("RGB" if form == "WEBP" else mode).save(
            file, form, icc_profile=bytes(icc)
        )
        assert decode_image(file, "a picture").size == (24, 16), number
