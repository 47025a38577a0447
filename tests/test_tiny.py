"""The tiny models load, see, and are of the form that they say."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from jinja2.exceptions import TemplateError
from llama_cpp import mtmd_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from tiny import FAMILIES, Family

pytestmark = pytest.mark.slow

Array = npt.NDArray[Any]
MARKER = mtmd_cpp.mtmd_default_marker().decode()


def picture(seed: int, side: int) -> Array:
    """Random squares of colour."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    row = np.arange(side) * 4 // side
    return np.ascontiguousarray(colours[row][:, row])


@dataclass
class Loaded:
    """A model and its eyes, if it has any."""

    family: Family
    llama: llama_cpp.Llama
    eyes: Any

    @contextmanager
    def chunks(self, text: str, *pictures: Array) -> Iterator[Any]:
        """What mtmd makes of a text with a marker for each picture."""
        bitmaps = [
            mtmd_cpp.mtmd_bitmap_init(
                p.shape[1], p.shape[0], p.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            )
            for p in pictures
        ]
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            given = mtmd_cpp.mtmd_input_text(text.encode(), len(text.encode()), True, True)
            array = (mtmd_cpp.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            assert not mtmd_cpp.mtmd_tokenize(
                self.eyes, chunks, ctypes.byref(given), array, len(bitmaps)
            )
            yield chunks
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd_cpp.mtmd_bitmap_free(bitmap)

    def images(self, chunks: Any) -> list[Any]:
        every = range(mtmd_cpp.mtmd_input_chunks_size(chunks))
        got = [mtmd_cpp.mtmd_input_chunks_get(chunks, i) for i in every]
        kind = mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE
        return [c for c in got if mtmd_cpp.mtmd_input_chunk_get_type(c) == kind]

    def logits(self, text: str, *pictures: Array) -> Array:
        """The logits after a text with pictures."""
        context = self.llama.ctx
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        with self.chunks(text, *pictures) as chunks:
            end = llama_cpp.llama_pos(0)
            assert not mtmd_cpp.mtmd_helper_eval_chunks(
                self.eyes, context, chunks, 0, 0, self.llama.n_batch, True, ctypes.byref(end)
            )
        row = llama_cpp.llama_get_logits_ith(context, -1)
        return np.ctypeslib.as_array(row, (self.llama.n_vocab(),)).copy()


SEEING = [name for name, family in FAMILIES.items() if not family.text_only]
seeing = pytest.mark.parametrize("loaded", SEEING, indirect=True)


@pytest.fixture(scope="module", params=list(FAMILIES))
def loaded(request: Any, tmp_path_factory: Any) -> Iterator[Loaded]:
    family = FAMILIES[request.param]
    model, mmproj = family.write(tmp_path_factory.mktemp(family.name))
    options: dict[str, Any] = {"n_threads": 1, "n_threads_batch": 1, "verbose": False}
    llama = llama_cpp.Llama(str(model), n_ctx=2048, **options)
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.print_timings, params.n_threads = False, False, 1
    eyes = mmproj and mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), llama.model, params)
    assert bool(eyes) != family.text_only
    yield Loaded(family, llama, eyes)
    if eyes:
        mtmd_cpp.mtmd_free(eyes)
    llama.close()


@seeing
def test_sees(loaded: Loaded) -> None:
    """Two pictures differ, and so does each place of the two."""
    side = loaded.family.picture_side
    first, second = picture(1, side), picture(2, side)
    one = f"{MARKER} What is this?"
    two = f"Look: {MARKER} and {MARKER} What is this?"
    seen = [
        loaded.logits(one, first),
        loaded.logits(one, second),
        loaded.logits(two, first, first),
        loaded.logits(two, first, second),
        loaded.logits(two, second, first),
    ]
    assert np.isfinite(seen).all()
    assert np.array_equal(seen[0], loaded.logits(one, first))
    for i, logits in enumerate(seen):
        for other in seen[:i]:
            assert np.abs(logits - other).max() > 0.01


@seeing
def test_slices(loaded: Loaded) -> None:
    """A large picture is cut where the family cuts, and every slice counts."""
    family = loaded.family
    large = picture(3, family.large_side)
    text = f"{MARKER} What is this?"
    with loaded.chunks(text, large) as chunks:
        assert (len(loaded.images(chunks)) > 1) == family.sliced
    with loaded.chunks(text, picture(3, family.picture_side)) as chunks:
        assert (len(loaded.images(chunks)) > 1) == (family.name == "smolvlm")
    changed = large.copy()
    changed[: family.large_side // 4, : family.large_side // 4] ^= 255
    if family.sliced:
        assert not np.array_equal(loaded.logits(text, large), loaded.logits(text, changed))


def test_says_what_it_is(loaded: Loaded) -> None:
    family, model = loaded.family, loaded.llama.model
    recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    assert recurrent == family.hybrid
    assert llama_cpp.llama_model_n_layer(model) >= 3
    experts = [name for name in loaded.llama.metadata if name.endswith(".expert_count")]
    assert bool(experts) == family.experts
    if family.text_only:
        return
    assert mtmd_cpp.mtmd_decode_use_mrope(loaded.eyes) == family.mrope
    with loaded.chunks(MARKER, picture(1, family.picture_side)) as chunks:
        image = loaded.images(chunks)[0]
        assert mtmd_cpp.mtmd_decode_use_non_causal(loaded.eyes, image) == family.non_causal
        n_tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(image)
        n_pos = mtmd_cpp.mtmd_input_chunk_get_n_pos(image)
    assert (n_pos < n_tokens) == family.mrope


def test_special_tokens(loaded: Loaded) -> None:
    """The template's tokens are each one token, and the end of a turn ends the reply."""
    chat, llama = loaded.family.chat, loaded.llama
    for token in (*chat.tokens, chat.end):
        assert len(llama.tokenize(token.encode(), add_bos=False, special=True)) == 1
    (end,) = llama.tokenize(chat.end.encode(), add_bos=False, special=True)
    assert llama.token_eos() == end
    assert llama.metadata["tokenizer.chat_template"] == chat.template


# Templates ---------------------------------------------------------------------------------------

TEXT = "What is a hat?"


def rendered(family: Family, *contents: Any, **more: Any) -> str | None:
    """A conversation of turns of ``contents``, or nothing if the template refuses."""
    render = Jinja2ChatFormatter(family.chat.template, eos_token=family.chat.end, bos_token="<s>")
    roles = ["user", "assistant"] * len(contents)
    messages: Any = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]
    try:
        return str(render(messages=messages, **more).prompt)
    except (TypeError, ValueError, TemplateError):
        return None


def parts(text: str, n_pictures: int = 0) -> list[dict[str, str]]:
    return [{"type": "image"}] * n_pictures + [{"type": "text", "text": text}]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_template(family: Family) -> None:
    of_string, of_parts = rendered(family, TEXT), rendered(family, parts(TEXT))
    assert (of_string is not None and TEXT in of_string) == (family.forms != "parts")
    if family.forms == "strings":
        assert of_parts is None or TEXT not in of_parts or repr(parts(TEXT)) in of_parts
    else:
        assert of_parts is not None and of_parts.count(TEXT) == 1
        assert family.forms == "parts" or of_parts == of_string
    if family.chat.picture is not None:
        seen = rendered(family, parts(TEXT, 2))
        assert seen is not None and seen.count(family.chat.picture) == 2
    wrap = parts if family.forms == "parts" else str
    turns = (TEXT, "A thing to wear.", "Why?")
    long = rendered(family, *map(wrap, turns))
    assert long is not None
    places = [long.find(turn) for turn in turns]
    assert -1 < places[0] < places[1] < places[2]


def test_forms_there_are() -> None:
    """Of every form of template there is one, and of every way to fail."""
    assert {family.forms for family in FAMILIES.values()} == {"strings", "parts", "both"}
    answers = [
        rendered(family, parts(TEXT)) for family in FAMILIES.values() if family.forms == "strings"
    ]
    assert None in answers
    assert any(a is not None and TEXT not in a for a in answers)
    assert any(a is not None and TEXT in a for a in answers)
