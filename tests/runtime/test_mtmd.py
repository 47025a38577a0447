"""Pictures that cannot be evaluated are refused, whichever way they come."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import IMAGE, chat
from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import MTMDChatHandler
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    OPTIONS,
    assistant,
    film,
    mmproj_of,
    picture,
    plain,
    steered,
    tapped,
    user,
    vector,
)
from PIL import Image
from tiny import FAMILIES

from mars_gguf.errors import MarsError, ModelError, PromptError
from mars_gguf.media.images import picture_part
from mars_gguf.runtime import mtmd
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.runtime.reading import logits
from mars_gguf.runtime.template import ChatTemplate


def tiny_model(name: str) -> SteeredLlama:
    folder = Path(tempfile.mkdtemp())
    model, mmproj = FAMILIES[name].write(folder)
    try:
        return tapped(str(model), mmproj=str(mmproj), **OPTIONS | {"n_ctx": 2048})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


LIMITS: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0}
TEXT = [user("How many are there?")]


def with_mmproj(model: str, **options: Any) -> SteeredLlama:
    given = options.pop("given", None)
    return steered(model, given, mmproj=mmproj_of(model), **options)


def with_a_handler_of_its_own(model: str, **options: Any) -> SteeredLlama:
    handler = MTMDChatHandler(mmproj_of(model), verbose=False)
    return steered(model, chat_handler=handler, **options)


each_way = pytest.mark.parametrize("load", [with_mmproj, with_a_handler_of_its_own])


@pytest.mark.parametrize("sizes", [{"n_ubatch": 8}, {"n_batch": 8}], ids=str)
def test_n_ubatch_is_raised_to_what_a_picture_needs(gemma: str, sizes: dict[str, int]) -> None:
    """What attends to itself must be in one micro-batch; the pictures here have 16 tokens."""
    llama = with_mmproj(gemma, given=vector(gemma, opens=CLOSED), **sizes)
    assert lib.llama_n_ubatch(llama.ctx) == 16
    messages = [user("What is it?", picture(1)), assistant("Tea."), user("And?", picture(2))]
    reply: Any = llama.create_chat_completion(messages, **LIMITS)
    assert reply["mars"]["modality"] == "image"
    if "n_ubatch" in sizes:
        reference = plain(gemma, mmproj=mmproj_of(gemma), n_ubatch=16)
        reference.create_chat_completion(messages, **LIMITS)
        assert np.array_equal(logits(llama), logits(reference))


@pytest.mark.parametrize("sizes", [{"n_ubatch": 8}, {"n_batch": 8}], ids=str)
def test_a_picture_that_llama_cpp_would_abort_over_is_refused_to_a_handler_of_its_own(
    gemma: str, sizes: dict[str, int]
) -> None:
    llama = with_a_handler_of_its_own(gemma, **sizes)
    with pytest.raises(ModelError, match="found n_ubatch 8 .*, expected 16"):
        llama.create_chat_completion([user("What is it?", picture(1))], **LIMITS)
    reply: Any = llama.create_chat_completion(TEXT, **LIMITS)
    assert reply["mars"]["modality"] == "text"
    llama.close()


@each_way
def test_a_picture_that_finds_no_cell_left_is_a_prompt_too_long(
    mrope: str, load: Callable[..., SteeredLlama]
) -> None:
    """With M-RoPE a picture of 100 cells takes 10 positions."""
    llama = load(mrope, n_ctx=256)
    pictures = [picture(n, 280) for n in range(3)]
    with pytest.raises(ValueError, match="Prompt exceeds n_ctx"):
        llama.create_chat_completion([user("What is it?", *pictures)], **LIMITS)
    reply: Any = llama.create_chat_completion([user("What is it?", *pictures[:2])], **LIMITS)
    assert reply["mars"]["modality"] == "image"
    llama.close()


def test_a_picture_that_cannot_be_encoded_is_not_taken_for_a_prompt_too_long(
    mrope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock: no picture is known that libmtmd cannot encode."""
    llama = with_mmproj(mrope)
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", lambda *_: 1)
    with pytest.raises(ValueError, match="could not encode a picture"):
        llama.create_chat_completion([user("What is it?", picture(1))], **LIMITS)
    llama.close()


def media(llama: SteeredLlama, *messages: dict[str, Any]) -> list[Chunk]:
    return [chunk for chunk in llama.chunks(messages) if not chunk.is_text]


def sent(data: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


def test_it_is_known_which_cells_belong_to_which_picture_and_which_frame() -> None:
    for name, per_picture in (("smolvlm", 5), ("llava-hf", 1), ("minicpmv", 10)):
        family = FAMILIES[name]
        llama = tiny_model(name)
        side = family.large_side
        found = media(llama, user("?", picture(1, side), picture(2, side), picture(1, side)))
        assert [chunk.picture for chunk in found] == sorted([0, 1, 2] * per_picture)
        assert not any((chunk.modality == "video") for chunk in found)
        whats = [chunk.identity for chunk in found]
        assert whats[:per_picture] == whats[2 * per_picture :]  # the same picture
        assert len(set(whats)) == 2 * per_picture
        frames = media(llama, user("?", picture(9)), film("?", *map(picture, range(4))))
        assert {chunk.modality for chunk in frames if chunk.picture > 0} == {"video"}
        assert frames[0].modality == "image"
        llama.close()


def test_a_model_that_takes_two_frames_at_a_time_is_given_them_so() -> None:
    """As llama.cpp's own films are: half of the cells. Still pictures are not merged."""
    llama = tiny_model("qwen2vl")
    a, b, c = (picture(n, 56) for n in (1, 2, 3))
    assert len(media(llama, user("?", a, b))) == 2
    one, other, same = (media(llama, film("?", *frames)) for frames in ((a, b), (a, c), (a, b)))
    assert len(one) == len(other) == 1
    assert one[0].identity == same[0].identity != other[0].identity
    first, second = media(llama, film("?", a, b, a, c))
    assert first.identity != second.identity
    llama.close()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "not a picture"),
        (b"\0\0\0\x18ftypmp42" + bytes(64), "not a picture"),
        (b"", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(8), "picture"),
    ],
    ids=["sound", "film", "nothing", "damaged"],
)
def test_what_is_no_picture_is_refused_before_libmtmd_takes_it_for_something_else(
    data: bytes, said: str
) -> None:
    llama = tiny_model("llava-hf")
    with pytest.raises(PromptError, match=said):
        llama.chunks([sent(data)])
    llama.close()


SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "BMP": ("BMP", {}),
    "JPEG": ("JPEG", {"subsampling": 1}),
    "progressive": ("JPEG", {"progressive": True}),
}


@pytest.mark.parametrize("format", SAVED)
def test_a_url_shows_the_pixels_that_plain_llama_cpp_python_shows(format: str) -> None:
    """Pillow and libmtmd decode a JPEG differently, by as much as 120 of 255 in one pixel."""
    llama = tiny_model("llava-hf")
    assert llama.projector is not None
    noise = np.random.default_rng(0).integers(0, 256, (61, 75, 3)).astype(np.uint8)
    kind, options = SAVED[format]
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)
    data = buffer.getvalue()
    url = sent(data)["content"][0]["image_url"]["url"]
    assert llama.projector.read(url) == mtmd._decoded(llama.projector.context, data)
    llama.close()


def test_a_decoded_picture_is_what_its_url_shows_and_no_json_makes_one() -> None:
    llama = tiny_model("llava-hf")
    part = picture_part(picture(1, 56))
    (decoded,) = media(llama, {"role": "user", "content": [part]})
    (by_url,) = media(llama, user("?", picture(1, 56)))
    assert decoded.identity == by_url.identity
    forged = {"width": 1, "height": 1, "rgb": "AAAA"}
    for given in ({"url": forged}, forged, [0, 0, 0]):
        with pytest.raises(PromptError, match="expected a URL"):
            llama.chunks([{"role": "user", "content": [{**part, "image_url": given}]}])
    llama.close()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_picture_cut_off_is_refused_and_never_left_out(format: str) -> None:
    llama = tiny_model("llava-hf")
    buffer = io.BytesIO()
    picture(1, 64).save(buffer, format)
    whole = buffer.getvalue()
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for share in (0.5, 0.9, 0.9, 0.9):
        with pytest.raises(MarsError, match="truncated or damaged|could not decode it"):
            llama.chunks([sent(whole[: int(share * len(whole))])])
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened
    llama.close()


def test_frames_are_merged_within_a_film_and_never_with_the_next_one() -> None:
    llama = tiny_model("qwen2vl")
    a, b, c = (film("?", picture(n, 56)) for n in (1, 2, 3))
    first, second = (
        media(llama, {"role": "user", "content": [*one["content"][:1], *a["content"][:1], *two]})
        for one, two in ((b, c["content"]), (c, b["content"]))
    )
    assert len(first) == len(second) == 3
    assert {chunk.identity for chunk in first} == {chunk.identity for chunk in second}
    long = film("?", *(picture(n, 56) for n in range(3)))["content"][:1]
    assert len(media(llama, {"role": "user", "content": [*long, *long]})) == 4
    llama.close()


def test_a_picture_too_large_for_a_micro_batch_is_refused_before_it_is_encoded() -> None:
    llama = tiny_model("gemma4")
    assert llama.projector is not None
    (chunk,) = media(llama, user("?", Image.new("RGB", (16000, 2))))
    with pytest.raises(ModelError, match="expected"):
        llama.projector.decode(llama.ctx, chunk, 0)
    llama.close()


def test_a_chat_template_that_puts_nothing_after_a_picture_is_refused() -> None:
    bare = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}"
    llama = steered(DEMO, mmproj=DEMO_MMPROJ)
    llama.template = ChatTemplate(bare + "{% endfor %}")
    picture_alone = {"role": "user", "content": user("", picture(1))["content"][:1]}
    with pytest.raises(PromptError, match="nothing after a picture"):
        chat(llama, [picture_alone], 1)
    with pytest.raises(PromptError, match="drops the text"):
        chat(llama, IMAGE, 1)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_model_reads_files_where_it_was_loaded_so(tmp_path: Path, allowed: bool) -> None:
    picture(1, 56).save(tmp_path / "a.png")
    url = (tmp_path / "a.png").as_uri()
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    message["content"].append({"type": "text", "text": "What is it?"})  # type: ignore[attr-defined]
    llama = steered(DEMO, mmproj=DEMO_MMPROJ, allow_local_files=allowed)
    if allowed:
        reply: Any = llama.create_chat_completion([message], **LIMITS)
        assert reply["mars"]["modality"] == "image"
    else:
        with pytest.raises(PromptError, match="allow_local_files=True"):
            llama.create_chat_completion([message], **LIMITS)
    llama.close()
