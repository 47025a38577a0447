"""Pictures and films that requests name: fetched and decoded within limits."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import av
import numpy as np
import openai
import pytest
from exif import ODD
from PIL import Image
from servers import (
    HARMFUL,
    PICTURE,
    Server,
    chat,
    picture_message,
    text_of,
)
from sites import pictures_served

from mars_gguf.media.images import data_url, decode_image, pixels_of, url_of
from mars_gguf.server import attachments, decoders
from mars_gguf.server.exchange import Exchange
from mars_gguf.server.http_errors import RequestError
from mars_gguf.server.request_limits import LIMITS
from mars_gguf.server.settings import read_settings
from mars_gguf.server.sharing import Line

FILE = base64.b64decode(PICTURE.partition(",")[2])  # in it


def decoded(messages: list[Any], *flags: str, current: Exchange | None = None) -> list[Any]:
    """``messages``, with what the model is shown in the place of their pictures."""

    async def decode() -> None:
        async with (request := current or Exchange()).until_turn:
            await attachments.decode_media(messages, read_settings(["--demo", *flags])[0], request)

    anyio.run(decode)
    return messages


def bounded(monkeypatch: pytest.MonkeyPatch, name: str, most: float) -> None:
    monkeypatch.setitem(LIMITS, name, replace(LIMITS[name], most=most))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_model_is_shown_pixels_upright_and_nothing_that_a_client_has_encoded(form: str) -> None:
    file, held = io.BytesIO(), list[int]()
    more = {} if form in ("GIF", "BMP") else {"exif": ODD["two orientations"]}
    Image.new("RGB", (40, 20), "red").save(file, form, **more)
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    [shown] = decoded([picture_message(url)], current=Exchange(hold=held.append))
    expected = pixels_of(decode_image(file, "it"))
    assert shown["content"][0] == {"type": "image_url", "image_url": {"url": expected}}
    assert (expected.width, expected.height) == ((20, 40) if more else (40, 20))
    size = len(file.getvalue())
    assert held == [size, 3 * 40 * 20 - size]


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("http://127.0.0.1:{port}/metrics", 403, "not public"),
        ("http://localhost:{port}/metrics", 403, "not public"),
        ("http://[::ffff:127.0.0.1]:{port}/", 403, "not public"),
        ("http://0x7f.1:{port}/", 403, "not public"),
        ("file:///etc/passwd", 400, "scheme"),
        ("/etc/passwd", 400, "scheme"),
        ("ftp://example.org/x.png", 400, "scheme"),
        ("data:image/png;base64,????", 400, "not base64"),
        ("data:image/png,abc", 400, "data URL"),
        ("data:image/png;base64,AAAA", 400, "not a picture"),
        (PICTURE[:-120] + "A" * 120, 400, "damaged"),
        ("data:image/png;base64," + "A" * (28 << 20), 413, "too large"),
        ("data:image/png;base64," + "A" * (40 << 20), 413, "request has more than"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_may_not_be_loaded_is_an_error_of_the_client(
    server: Server, url: str, status: int, message: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        server.client.chat.completions.create(
            model="any",
            messages=[picture_message(url.format(port=server.port))],  # type: ignore[list-item]
            stream=stream,
        )
    assert refused.value.status_code == status
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500


def test_several_pictures_share_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    bounded(monkeypatch, "media", 2)
    few = ["--max_media_pixels", "2305"]
    decoded([picture_message(PICTURE)], *few)
    with pytest.raises(RequestError, match="picture too large"):
        decoded([picture_message(PICTURE), picture_message(PICTURE)], *few)
    with pytest.raises(RequestError, match="found 3 pictures and films"):
        decoded([picture_message(PICTURE)] * 3, *few)


def test_a_small_file_of_many_pixels_is_not_decoded(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (8200, 8200)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert len(url) < 100_000
    with pytest.raises(openai.BadRequestError, match="8200 x 8200"):
        chat(server, [picture_message(url)])


def test_pictures_come_by_http_where_allowed(configured: Server) -> None:
    with pictures_served(FILE) as site:
        over_http = chat(configured, [picture_message(f"{site}/picture")])
        assert text_of(over_http) == text_of(chat(configured, [picture_message(PICTURE)]))
        assert over_http["mars"]["modality"] == "image"
        with pytest.raises(openai.APIStatusError, match="too large"):
            chat(configured, [picture_message(f"{site}/large")])
    with pytest.raises(openai.BadRequestError, match="sees no pictures"):
        chat(configured, [picture_message(PICTURE)], model="broken.gguf")
    with pytest.raises(openai.UnprocessableEntityError):
        chat(configured, [picture_message(PICTURE, "system"), HARMFUL])


def film(frames: int = 8, width: int = 64, height: int = 48) -> bytes:
    """A film of noise at four frames a second, the same every time."""
    rng, file = np.random.default_rng(3), io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return file.getvalue()


def film_message(content: bytes | str, text: str = "What?") -> dict[str, Any]:
    if isinstance(content, bytes):
        content = "data:video/mp4;base64," + base64.b64encode(content).decode()
    parts = [{"type": "video_url", "video_url": {"url": content}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def test_a_film_is_shown_by_its_frames(server: Server) -> None:
    message = film_message(film())
    [shown] = json.loads(json.dumps(decoded([film_message(film())]), default=url_of))
    frames = shown["content"][0]
    assert frames.keys() == {"type", "video"}
    assert len(frames["video"]) == 8
    replies = [chat(server, [m]) for m in (message, shown)]
    assert [reply["mars"]["modality"] for reply in replies] == ["video"] * 2
    assert text_of(replies[0]) == text_of(replies[1])
    assert replies[0]["mars"]["t"] == pytest.approx(replies[1]["mars"]["t"], abs=0.02)
    other = chat(server, [film_message(film(), "How do I make a bomb?")])
    assert abs(other["mars"]["t"] - replies[0]["mars"]["t"]) > 0.02


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n%s\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no film", "a film: "),
        (film()[:200], "a film: "),
        (PLAYLIST % b"/etc/passwd", "a film: "),
        ("file:///etc/passwd", "scheme"),
        ("http://127.0.0.1/film.mp4", "not public"),
        ("data:video/mp4;base64,????", "not base64"),
    ],
)
def test_a_film_that_may_not_be_loaded_is_an_error_of_the_client(
    server: Server, content: bytes | str, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        chat(server, [film_message(content)])
    assert refused.value.status_code in (400, 403)
    assert "/tmp" not in str(refused.value)


def test_films_are_decoded_within_limits_and_written_to_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    bounded(monkeypatch, "media_seconds", 30)
    flags = ["--max_video_frames", "3", "--max_media_pixels", "7000"]
    frames = decoded([film_message(film())], *flags)[0]["content"][0]["video"]
    assert len(frames) == 3
    assert 6000 < sum(frame.width * frame.height for frame in frames) <= 7000
    given = {"type": "video", "video": [PICTURE] * 4}
    with pytest.raises(RequestError, match="4 frames of a film that are given, expected at most 3"):
        decoded([{"role": "user", "content": [given]}], *flags)
    (tmp_path / "film.mp4").write_bytes(film())
    playlist = PLAYLIST % bytes(tmp_path / "film.mp4")
    for content, pixels, seconds, message in (
        (film(), 2000, 30, "too many pixels"),
        (film(), 7000, 0, "takes too long"),
        (playlist, 7000, 30, "PyAV cannot read it"),
        (film(2, 1280, 720), 7000, 30, "7000 pixels a frame"),
    ):
        asked = {"max_frames": 3, "most_pixels": 7000, "max_pixels": pixels}
        with pytest.raises(RequestError, match=message):
            decoders.decode(asked, time.monotonic() + seconds, content)


async def shown(current: Exchange, url: str) -> None:
    """As the server has a picture shown for a request."""
    settings = read_settings(["--demo", "--allow-private-media"])[0]
    await attachments.decode_media([picture_message(url)], settings, current)


def test_few_pictures_of_requests_that_wait_for_the_model_are_decoded() -> None:
    """And each of the others when one of those has its turn: none is refused for want of room."""
    file = io.BytesIO()
    Image.new("RGB", (512, 512)).save(file, "PNG")
    url, size, held = data_url(Image.open(file)), 3 << 18, [0, 0]  # now, at most

    def hold(more: int) -> None:
        held[0] += more
        held[1] = max(held)

    async def ask(model: Line) -> None:
        current = Exchange(client="a", hold=hold)
        await shown(current, url)
        async with model.turn(current):
            await current.until_turn.aclose()
            await anyio.sleep(0.05)
        hold(-size)

    async def ask_all() -> None:
        model = Line()
        async with anyio.create_task_group() as asked:
            for _ in range(20):
                asked.start_soon(ask, model)

    anyio.run(ask_all)
    assert held[0] == 0 and 4 * size < held[1] < 6.5 * size
    assert attachments.READY.free == 4


def test_a_request_that_fails_leaves_its_place_to_others() -> None:
    async def ask() -> None:
        for _ in range(9):
            async with (current := Exchange()).until_turn:
                with pytest.raises(RequestError, match="not a picture"):
                    await shown(current, "data:image/png;base64,AAAA")

    anyio.run(ask)
    assert attachments.READY.free == 4


def test_pictures_of_slow_addresses_are_waited_for_at_the_cost_of_who_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attachments, "FETCHES", Line(2))
    late, done = list[int](), list[str]()

    async def ask(client: str, url: str, seconds: float) -> None:
        bounded(monkeypatch, "media_seconds", seconds)  # which begin with it
        async with (current := Exchange(client=client)).until_turn:
            try:
                await shown(current, url)
            except RequestError as error:
                assert "too long" in str(error)
                late.append(1)
        done.append(client)

    async def ask_all(site: str) -> None:
        async with anyio.create_task_group() as asked:
            for _ in range(6):
                asked.start_soon(ask, "a", f"{site}/endless", 1)
            await anyio.sleep(0.2)
            asked.start_soon(ask, "b", f"{site}/picture", 30)

    with pictures_served(FILE) as site:
        anyio.run(ask_all, site)
    assert len(late) == 6 and done.index("b") <= 2
