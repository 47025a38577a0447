"""The names of the ways to write prompts."""

from __future__ import annotations

from llama_cpp import llama_chat_format

from mars_gguf.formats import HANDLERS, PICTURE_FORMATS


def test_every_format_for_pictures_is_one_of_llama_cpp_python() -> None:
    handlers = {getattr(llama_chat_format, name).__name__ for name in PICTURE_FORMATS.values()}
    assert handlers == set(PICTURE_FORMATS.values())
    assert set(HANDLERS) == {"mtmd", "chatml", *PICTURE_FORMATS}
