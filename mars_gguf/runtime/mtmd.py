"""Brings pictures and films into the context, by libmtmd: cuts them, encodes each once, decodes
them; and refuses what llama.cpp would abort over."""

from __future__ import annotations

import ctypes
import hashlib
import io
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast

import numpy as np
from llama_cpp import Llama, mtmd_cpp
from llama_cpp import llama_cpp as lib

from mars_gguf.errors import MarsError, ModelError, PromptError
from mars_gguf.interrupts import interrupts_held
from mars_gguf.media.picture import Picture
from mars_gguf.runtime.chunks import Chunk, text_chunk
from mars_gguf.runtime.compat import llama_log_callback, suppress_stdout_stderr
from mars_gguf.runtime.encoded import Embeddings, Encoded
from mars_gguf.runtime.messages import ADVICE, Medium
from mars_gguf.runtime.template import Rendered
from mars_gguf.runtime.urls import load_url

SIDES = ((2048, 2048), (2048, 512), (512, 2048))  # of pictures that take the most tokens
Load = Callable[[str], bytes]
Read = Callable[[str], Picture]


class Projector:
    """The mmproj of a model, loaded. Raises ModelError if it is not one, or not of that model.

    load: reads what the URL of a picture names. encoded: the pictures that were, and seconds: what
        that took so far.
    """

    def __init__(self, path: str, llama: Llama, *, verbose: bool = False) -> None:
        self.path, self.verbose = path, verbose
        self.load: Load = load_url
        self.seconds = 0.0
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.print_timings = True, verbose
        params.n_threads = llama.n_threads_batch  # as for prompts
        enabled = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        wanted = llama.context_params.flash_attn_type == enabled
        params.flash_attn_type = enabled if wanted else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        silence_mtmd()
        with suppress_stdout_stderr(disable=verbose):
            self.context = mtmd_cpp.mtmd_init_from_file(path.encode(), llama.model, params)
        if self.context is None or not mtmd_cpp.mtmd_support_vision(self.context):
            self.close()
            raise ModelError(
                f"{path}: llama.cpp could not load this as the mmproj of the model (n_embd "
                f"{llama.n_embd()}). Is it the mmproj that belongs to this model?"
            )
        self.mrope = bool(mtmd_cpp.mtmd_decode_use_mrope(self.context))
        self.n_embd_input = lib.llama_model_n_embd_inp(llama.model)
        self.encoded = Encoded()

    def close(self) -> None:
        """Free it. To be called before the model is freed."""
        if self.context is not None:
            mtmd_cpp.mtmd_free(self.context)
            self.context = None

    def tokenize(self, text: str, media: Sequence[Medium], read: Read | None = None) -> list[Chunk]:
        """The chunks of a prompt with a marker for each of ``media``, in order; ``read`` decodes
        what their URLs name, by default the projector's own. Raises PromptError for pictures that
        cannot be read or that the model cannot take."""
        pictures = []
        for number, medium in enumerate(media):
            source = medium.source
            try:
                decoded = source if isinstance(source, Picture) else (read or self.read)(source)
            except PromptError as error:
                said = str(error).removeprefix("a picture: ")
                raise PromptError(f"picture {number + 1}: {said}") from error
            pictures.append(decoded)
        with ExitStack() as stack:
            bitmaps = []
            for picture in pictures:
                bitmaps.append(
                    mtmd_cpp.mtmd_bitmap_init(
                        picture.width, picture.height, cast(Any, _pointer(picture.rgb))
                    )
                )
                stack.callback(mtmd_cpp.mtmd_bitmap_free, bitmaps[-1])
            _name(bitmaps, pictures, media)
            return self._tokenize(text, bitmaps, media)

    def _tokenize(self, text: str, bitmaps: list[Any], media: Sequence[Medium]) -> list[Chunk]:
        encoded, given = text.encode(), mtmd_cpp.mtmd_input_text()
        given.text, given.text_len = encoded, len(encoded)
        given.add_special = given.parse_special = True
        array = (mtmd_cpp.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            with suppress_stdout_stderr(disable=self.verbose):
                code = mtmd_cpp.mtmd_tokenize(
                    self.context, chunks, ctypes.byref(given), array, len(bitmaps)
                )
            if code != 0:
                raise PromptError(f"libmtmd could not tokenize the prompt (code {code})")
            slices = Counter[int]()
            found = [
                self._chunk(mtmd_cpp.mtmd_input_chunks_get(chunks, i), media, slices)
                for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks))
            ]
            _require_shown(media, slices)
            return found
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)

    @staticmethod
    def _chunk(chunk: Any, media: Sequence[Medium], slices: Counter[int]) -> Chunk:
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
            count = ctypes.c_size_t()
            tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            return text_chunk(tokens[: count.value])
        number, _, content = (mtmd_cpp.mtmd_input_chunk_get_id(chunk) or b"").partition(b":")
        picture = int(number)
        slices[picture] += 1
        pointer = mtmd_cpp.mtmd_input_chunk_copy(chunk)
        found = Chunk(
            media[picture].modality,
            int(mtmd_cpp.mtmd_input_chunk_get_n_tokens(pointer)),
            int(mtmd_cpp.mtmd_input_chunk_get_n_pos(pointer)),
            (content, slices[picture]),
            pointer=pointer,
            picture=picture,
        )
        weakref.finalize(found, mtmd_cpp.mtmd_input_chunk_free, pointer)
        return found

    def read(self, url: str) -> Picture:
        """The picture that a URL names, decoded once: an upright opaque JPEG by libmtmd, whose
        pixels plain llama-cpp-python shows, all else by Pillow. Raises PromptError for what is no
        picture or a larger one than `decode_image` takes."""
        # Takes a moment to import: only who shows pictures pays for it.
        from mars_gguf.media.images import (
            decode_image,
            open_image,
            orientation,
            pixels_of,
            readable,
        )

        data = self.load(url)
        file = io.BytesIO(data)
        try:
            with readable(file, "a picture") as timed, open_image(timed, "a picture") as image:
                by_libmtmd = image.format == "JPEG" and orientation(image) == 1
            if by_libmtmd:
                return _decoded(self.context, data)
            return pixels_of(decode_image(io.BytesIO(data), "a picture"))
        except MarsError as error:
            raise PromptError(str(error)) from error

    def encode(self, chunk: Chunk) -> Embeddings:
        """The embeddings of a medium, [n_tokens, n_embd_input]; those used last are kept."""
        if (known := self.encoded.get(chunk.identity)) is not None:
            return known
        began = time.perf_counter()
        with interrupts_held(), suppress_stdout_stderr(disable=self.verbose):
            code = mtmd_cpp.mtmd_encode_chunk(self.context, chunk.pointer)
        self.seconds += time.perf_counter() - began
        if code != 0:
            raise ModelError(f"libmtmd could not encode a picture (code {code})")
        output = mtmd_cpp.mtmd_get_output_embd(self.context)
        kept = np.ctypeslib.as_array(output, (chunk.n_tokens, self.n_embd_input)).copy()
        if not np.isfinite(kept).all():
            # llama.cpp clears the breaks between Pixtral's rows by a product with 0, of whatever
            # lay in that memory (tools/mtmd/models/pixtral.cpp).
            raise ModelError(
                "libmtmd encoded a picture to NaN or infinite values: load the model anew, or show "
                "another picture"
            )
        self.encoded.add(chunk.identity, kept)
        return kept

    def forget(self) -> None:
        """Let go of all encoded pictures."""
        self.encoded.clear()

    def decode(self, context: Any, chunk: Chunk, start: int, sequence: int = 0) -> int:
        """Decode a medium into ``sequence`` from position ``start`` on; the position after it.
        Raises ModelError where llama.cpp would abort, ValueError if the context is full."""
        require_one_batch(self.context, chunk.pointer, context)
        embeddings = self.encode(chunk)
        after = lib.llama_pos(0)
        with interrupts_held():
            code = mtmd_cpp.mtmd_helper_decode_image_chunk(
                self.context, context, chunk.pointer,
                embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), cast(Any, start),
                cast(Any, sequence), lib.llama_n_batch(context), ctypes.byref(after),
                mtmd_cpp.mtmd_helper_post_decode_callback(), cast(Any, None),
            )  # fmt: skip
        require_decoded(code, context)
        return int(after.value)

    def decodes_alone(self, chunk: Chunk) -> bool:
        """Whether a medium must be decoded in libmtmd's own way: its positions are not those of
        text, or its tokens attend to one another."""
        return self.mrope or mtmd_cpp.mtmd_decode_use_non_causal(self.context, chunk.pointer)

    def most_tokens_at_once(self) -> int:
        """How many tokens the model may have to decode in one micro-batch for a picture; 0 where it
        need not."""
        if not mtmd_cpp.mtmd_decode_use_non_causal(self.context, cast(Any, None)):
            return 0
        media = [Medium("")]
        counts = []
        for width, height in SIDES:
            blank = mtmd_cpp.mtmd_bitmap_init(width, height, cast(Any, None))
            mtmd_cpp.mtmd_bitmap_set_id(blank, b"0:")
            try:
                marker = mtmd_cpp.mtmd_default_marker().decode()
                chunks = self._tokenize(marker, [blank], media)
            finally:
                mtmd_cpp.mtmd_bitmap_free(blank)
            counts += [chunk.n_tokens for chunk in chunks if not chunk.is_text]
        return max(counts)


def _require_shown(media: Sequence[Medium], slices: Mapping[int, int]) -> None:
    """Raise PromptError unless every still picture and every film has a chunk."""
    films = {medium.film for number, medium in enumerate(media) if slices.get(number)}
    for number, medium in enumerate(media):
        if not slices.get(number) and (medium.film is None or medium.film not in films):
            raise PromptError(f"picture {number + 1}: libmtmd made nothing of it")


def _decoded(mtmd_context: Any, data: bytes) -> Picture:
    """The picture in ``data`` as libmtmd decodes it. Raises PromptError if it does not."""
    found = mtmd_cpp.mtmd_helper_bitmap_init_from_buf_wrapper(
        mtmd_context, cast(Any, _pointer(data)), len(data), False,
        mtmd_cpp.mtmd_helper_init_opt_default(),
    )  # fmt: skip
    bitmap = found.bitmap
    if found.video_ctx:  # what it could not decode, it took for a film
        mtmd_cpp.mtmd_bitmap_free(bitmap)
        mtmd_cpp.mtmd_helper_video_free(found.video_ctx)
        bitmap = None
    if not bitmap:
        raise PromptError("a picture: libmtmd could not decode it; save it as PNG")
    try:
        width, height = mtmd_cpp.mtmd_bitmap_get_nx(bitmap), mtmd_cpp.mtmd_bitmap_get_ny(bitmap)
        pixels = mtmd_cpp.mtmd_bitmap_get_data(bitmap)
        return Picture(width, height, ctypes.string_at(pixels, 3 * width * height))
    finally:
        mtmd_cpp.mtmd_bitmap_free(bitmap)


def _pointer(data: bytes) -> Any:
    """A pointer to ``data`` for C, which only reads there and is done before they are freed."""
    return ctypes.cast(cast(Any, data), ctypes.POINTER(ctypes.c_uint8))


def _name(bitmaps: Sequence[Any], pictures: Sequence[Picture], media: Sequence[Medium]) -> None:
    """Give every picture its number in the prompt and the hash of what it shows for an id. Of two
    frames that a model takes at a time (Qwen-VL) libmtmd keeps the first one's id, so that of a
    frame is the film's and its place in it."""
    contents = [picture.sha256.encode() for picture in pictures]
    films: dict[int, Any] = {}
    for content, medium in zip(contents, media, strict=True):
        if medium.film is not None:
            films.setdefault(medium.film, hashlib.sha256()).update(content)
    places = Counter[int | None]()
    pairs = _pairs(pictures, media)
    for number, (bitmap, medium) in enumerate(zip(bitmaps, media, strict=True)):
        content = contents[number]
        if medium.film is not None:
            content = f"{films[medium.film].hexdigest()}+{places[medium.film]}".encode()
            places[medium.film] += 1
        mtmd_cpp.mtmd_bitmap_set_id(bitmap, b"%d:%s" % (number, content))
        mtmd_cpp.mtmd_bitmap_set_mergeable(bitmap, number in pairs)


def _pairs(pictures: Sequence[Picture], media: Sequence[Medium]) -> set[int]:
    """The frames that may be merged, two at a time: libmtmd would merge those of two films."""
    sizes = [(picture.width, picture.height) for picture in pictures]
    found: set[int] = set()
    for i in range(len(media) - 1):
        same = media[i].film is not None and media[i].film == media[i + 1].film
        if i not in found and same and sizes[i] == sizes[i + 1]:
            found |= {i, i + 1}
    return found


def require_one_batch(mtmd_context: Any, chunk: Any, context: Any) -> None:
    """Raise ModelError for a picture that the model must decode in one micro-batch and cannot:
    llama.cpp would abort the process."""
    cells, n_ubatch = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk), lib.llama_n_ubatch(context)
    if mtmd_cpp.mtmd_decode_use_non_causal(mtmd_context, chunk) and cells > n_ubatch:
        raise ModelError(
            f"the picture has {cells} tokens, which this model decodes in one micro-batch: "
            f"found n_ubatch {n_ubatch} (at most n_batch), expected {cells} or more. Raise it "
            "(--ubatch-size, for the server --n_ubatch), or show smaller pictures."
        )


def require_decoded(code: int, context: Any) -> None:
    """Raise for what llama.cpp returned of a picture: ValueError if it found no room for it."""
    if code == 1:  # llama_decode's: no slot
        n_ctx = lib.llama_n_ctx(context)
        raise ValueError(f"Prompt exceeds n_ctx: its pictures take more cells than {n_ctx}")
    if code != 0:
        raise ModelError(f"llama.cpp could not decode a picture (code {code})")


def silence_mtmd() -> None:
    """Send libmtmd's own log, which would ignore verbose=False, where llama.cpp's goes."""
    mtmd_cpp.mtmd_helper_log_set(llama_log_callback, cast(Any, None))


def chunks_of(
    llama: Llama, projector: Projector | None, rendered: Rendered, read: Read | None = None
) -> list[Chunk]:
    """The runs that a prompt is made of, its pictures read by ``read``. Raises PromptError for one
    that ends with a medium, or shows any where nothing is seen; ValueError for a text that cannot
    fit the context."""
    llama.vocabulary.require_fits(rendered.text.encode(), llama.n_ctx())
    if projector is None:
        response = rendered.without_media()
        text, add_bos = response.prompt.encode(), not response.added_special
        return [text_chunk(llama.tokenize(text, add_bos=add_bos, special=True))]
    llama.vocabulary.require_tokenizable(rendered.text.encode())
    chunks = projector.tokenize(rendered.text, rendered.media, read)
    if not chunks or not chunks[-1].is_text:
        raise PromptError(
            "the chat template puts nothing after a picture, where llama.cpp has no logits. "
            f"{ADVICE}."
        )
    return chunks
