"""What is timed of the converter is what it does, and the limit is the same work. No times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import few_media, few_prompts
from llama_cpp import llama_cpp as lib
from models import DEMO, DEMO_MMPROJ, mmproj_of, picture
from subjects import READING, subject

from lab.bench import extraction
from lab.bench.figures import Figure
from mars_gguf.convert.choices import Calibration, Prompts
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompt_sets import gather
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.splits import split_prompts


def test_the_extraction_that_is_timed_reads_what_a_conversion_reads() -> None:
    given = subject(DEMO_MMPROJ)
    prompts = [*given.text_prompts()[:3], *given.picture_prompts()[:2]]
    assert len({p.images[0].tobytes() for p in given.picture_prompts()}) == 16
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    rows = extraction.extract(extractor, prompts)
    expected = np.empty((5, extractor.n_layer, extractor.n_embd), np.float32)
    for indices, session in extractor.sessions(prompts):
        expected[indices] = session.observe()[0]
    assert rows.shape == (5, extractor.n_layer, extractor.n_embd)
    np.testing.assert_array_equal(rows, expected)


def test_the_limit_decodes_the_same_prompts_without_a_callback() -> None:
    given = subject(DEMO_MMPROJ)
    prompts = [*given.text_prompts()[:3], *given.picture_prompts()[:2]]
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    limit = extraction.Limit(DEMO, DEMO_MMPROJ, **READING)
    assert extractor.llama.context_params.cb_eval
    assert not limit.llama.context_params.cb_eval
    ((order, observed),) = ((i, s.observe()[1]) for i, s in extractor.sessions(prompts))
    assert len(order) == len(prompts)
    for _ in range(2):  # a repetition does the same work
        before = limit.timed.seconds
        assert limit.run(prompts) > limit.timed.seconds - before > 0  # encoding counts
        rows = [lib.llama_get_logits_ith(limit.llama.ctx, i - len(prompts)) for i in range(5)]
        logits = np.stack([np.ctypeslib.as_array(r, (limit.llama.n_vocab(),)) for r in rows])
        cosine = (logits * observed).sum(1) / (
            np.linalg.norm(logits, axis=1) * np.linalg.norm(observed, axis=1)
        )
        assert cosine.min() > 0.998
        saved = sum(map(limit.length, prompts)) - limit.timed.n_tokens
        assert saved > 0  # what the prompts begin with is decoded once
        assert saved % (len(prompts) - 1) == 0


def test_each_repetition_decodes_as_many_tokens_and_so_does_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = subject().text_prompts()[:48]
    extractor, limit = GgufExtractor(DEMO, **READING), extraction.Limit(DEMO, **READING)
    assert len(list(extractor.sessions(prompts))) > 1
    decoded: list[int] = []
    decode = extractor.decoder.decode

    def counting(batch: Any) -> None:
        decoded.append(batch.n_tokens)
        decode(batch)

    monkeypatch.setattr(extractor.decoder, "decode", counting)
    found = set()
    for _ in range(2):
        decoded.clear()
        extraction.extract(extractor, prompts)
        limit.run(prompts)
        found |= {sum(decoded), limit.timed.n_tokens}
    assert len(found) == 1


def test_a_conversion_is_held_against_the_prefill_of_all_its_prompts(tmp_path: Path) -> None:
    media = few_media(tmp_path)
    prompts = Prompts(**few_prompts(tmp_path), neutral_media=media, own_wordings=True)
    given = replace(subject(DEMO_MMPROJ), prompts=prompts)
    figure = Figure.named("conversion")
    extraction.converted(figure, given, Calibration(layers=(6, 7)))
    (ours,), (theirs,) = figure.values["conversion"], figure.values["llama.cpp"]
    assert figure.samples == [ours / theirs]
    assert ours > theirs > 0
    sets = gather(given.prompts, 0, sees=True)
    splits = split_prompts(sets.contrast, sets.media, sets.contexts, 0)
    assert f"once, {len(splits)} prompts" in figure.note


def test_a_picture_that_is_decoded_alone_is_encoded_once_and_counted_once(mrope: str) -> None:
    limit = extraction.Limit(mrope, mmproj_of(mrope), **READING)
    prompt = Prompt("What is it?", (picture(1), picture(2)))
    projector = limit.llama.projector
    assert projector is not None
    before = limit.timed.seconds, projector.seconds
    total = limit.run([prompt])
    parts = limit.timed.seconds - before[0], projector.seconds - before[1]
    assert total == pytest.approx(sum(parts)) and min(parts) > 0
    assert limit.timed.n_tokens == limit.length(prompt)
