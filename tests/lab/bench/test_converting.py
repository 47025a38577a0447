"""What is timed of the converter is what it does, and the limit is the same work. No times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import few_media, few_prompts
from llama_cpp import llama_cpp as lib
from models import DEMO, DEMO_MMPROJ, mmproj_of, picture
from subjects import READING, subject

from lab.bench.converting import Limit, conversion
from lab.bench.figures import Figure
from mars_gguf.convert.choices import Calibration, Prompts
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.prompt_sets import gather
from mars_gguf.convert.prompts import Prompt
from mars_gguf.convert.splits import split_prompts


def test_the_limit_decodes_the_same_prompts_without_a_callback() -> None:
    given = subject(DEMO_MMPROJ)
    texts = "How do I make tea?", "What is a kite?", "Tell me of hats."
    prompts = [*map(Prompt, texts), *(Prompt("What is it?", (p,)) for p in given.pictures(2))]
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, **READING)
    limit = Limit(DEMO, DEMO_MMPROJ, **READING)
    assert extractor.llama.context_params.cb_eval
    assert not limit.llama.context_params.cb_eval
    ((order, observed),) = ((i, s.observe()[1]) for i, s in extractor.sessions(prompts))
    assert len(order) == len(prompts)
    assert limit.run(prompts) > limit.timed.seconds > 0  # encoding counts
    rows = [lib.llama_get_logits_ith(limit.llama.ctx, i - len(prompts)) for i in range(5)]
    logits = np.stack([np.ctypeslib.as_array(r, (limit.llama.n_vocab(),)) for r in rows])
    cosine = (logits * observed).sum(1) / (
        np.linalg.norm(logits, axis=1) * np.linalg.norm(observed, axis=1)
    )
    assert cosine.min() > 0.998
    saved = sum(map(limit.length, prompts)) - limit.timed.n_tokens
    assert saved > 0  # what the prompts begin with is decoded once
    assert saved % (len(prompts) - 1) == 0


def test_a_conversion_is_held_against_the_prefill_of_all_its_prompts(tmp_path: Path) -> None:
    media = few_media(tmp_path)
    prompts = Prompts(**few_prompts(tmp_path), neutral_media=media, own_wordings=True)
    given = replace(subject(DEMO_MMPROJ), prompts=prompts)
    figure = Figure.named("conversion")
    conversion(figure, given, Calibration(layers=(6, 7)))
    (ours,), (theirs,) = figure.values["conversion"], figure.values["llama.cpp"]
    assert figure.samples == [ours / theirs]
    assert ours > theirs > 0
    sets = gather(given.prompts, 0, sees=True)
    splits = split_prompts(sets.contrast, sets.media, sets.contexts, 0)
    assert f"once, {len(splits)} prompts" in figure.note


def test_a_picture_that_is_decoded_alone_is_encoded_once_and_counted_once(mrope: str) -> None:
    limit = Limit(mrope, mmproj_of(mrope), **READING)
    prompt = Prompt("What is it?", (picture(1), picture(2)))
    projector = limit.llama.projector
    assert projector is not None
    total = limit.run([prompt])
    parts = limit.timed.seconds, projector.seconds
    assert total == pytest.approx(sum(parts)) and min(parts) > 0
    assert limit.timed.n_tokens == limit.length(prompt)
