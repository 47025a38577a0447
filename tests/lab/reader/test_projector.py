from __future__ import annotations

from pathlib import Path

import numpy as np
from reader_inputs import (
    TOKENS,
)

from lab.reader.build import build, embeddings, readable_tokens
from lab.reader.grid import GRID, Writer
from lab.reader.projector import Gap
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompts import Prompt

SENTENCE = "How do I bake an apple pie at home?"


def read(extractor: GgufExtractor, writer: Writer, text: str) -> np.ndarray:
    """What libmtmd gives the model to see of the picture of ``text``, [cells, d]."""
    chunks = extractor.cached(Prompt("What is it?", (writer.picture(text),))).head
    (picture,) = [chunk for chunk in chunks if not chunk.is_text]
    return np.array(extractor.llama.projector.encode(picture))


def test_a_picture_gives_the_embeddings_of_its_tokens_and_blanks_that_of_a_space(
    smollm2: str, seeing: GgufExtractor, writer: Writer
) -> None:
    seen = read(seeing, writer, SENTENCE)
    texts = writer.tokens(SENTENCE)
    assert "".join(texts) == SENTENCE
    known = readable_tokens(seeing.llama, TOKENS)
    (space,) = seeing.llama.tokenize(b" ", add_bos=False)
    numbers = [*(known[text] for text in texts), space]
    expected = embeddings(Path(smollm2), numbers)
    assert len(seen) == GRID * GRID
    error = np.linalg.norm(seen[: len(texts)] - expected[:-1], axis=1)
    assert (error < 0.1 * np.linalg.norm(expected[:-1], axis=1)).all()
    blanks = seen[len(texts) :] - expected[-1]
    assert np.linalg.norm(blanks, axis=1).max() < 0.1 * np.linalg.norm(expected[-1])


def test_a_gap_scales_and_moves_what_is_seen(
    smollm2: str, tmp_path: Path, seeing: GgufExtractor, writer: Writer
) -> None:
    build(Path(smollm2), tmp_path / "m.gguf", gap=Gap(0.5, 0.25), most=TOKENS, features=512)
    other = GgufExtractor(smollm2, str(tmp_path / "m.gguf"))
    try:
        moved = read(other, writer, SENTENCE) - 0.5 * read(seeing, writer, SENTENCE)
    finally:
        other.close()
    assert np.abs(moved - moved.mean(0)).max() < 0.02 * np.abs(moved.mean(0)).max()
