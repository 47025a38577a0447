"""Marks stand for media: none is a token, or another picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from asking import IMAGE, QUESTION, chat, complete, evaluated
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    CLOSED,
    DEMO,
    DEMO_MMPROJ,
    picture,
    plain,
    steered,
    tokens_of,
    user,
    vector,
)

from mars_gguf import modalities
from mars_gguf.errors import ModelError
from mars_gguf.modalities import MEDIA, TEXT
from mars_gguf.runtime.chunks import Chunk
from mars_gguf.runtime.marks import Ids, Marks

Run = tuple[str, int, int]  # modality, positions, identity
runs = st.lists(
    st.tuples(st.sampled_from([TEXT.name, *MEDIA]), st.integers(1, 4), st.integers(1, 3)),
    max_size=8,
)


def context_of(context: list[Run]) -> tuple[Marks, Ids, list[tuple[int, Chunk]]]:
    """The marks and token ids of a context, and its media by where they begin."""
    marks, ids, media = Marks(), np.zeros(0, np.intc), []
    for modality, n, identity in context:
        mark = 7
        if modality != TEXT.name:
            media.append((len(ids), Chunk(modality, n, n, identity)))
            mark = marks.add(modality, identity)
        ids = np.append(ids, np.full(n, mark, np.intc))
    return marks, ids, media


def shown(marks: Marks, ids: Ids, start: int, chunk: Chunk) -> bool:
    return marks.stand_for(chunk, ids[start : start + chunk.n_positions])


@settings(deadline=None)
@given(runs)
def test_a_mark_is_no_token_and_stands_for_its_medium_alone(context: list[Run]) -> None:
    marks, ids, media = context_of(context)
    found = [int(ids[start]) for start, _ in media]
    assert len(set(found)) == len(found) and all(mark < 0 for mark in found)
    assert marks.modality == modalities.of(chunk.modality for _, chunk in media)
    for start, chunk in media:
        assert shown(marks, ids, start, chunk)
        (other,) = set(MEDIA) - {chunk.modality}
        longer = Chunk(chunk.modality, 9, chunk.n_positions + 1, chunk.identity)
        for unlike in (replace(chunk, identity=0), replace(chunk, modality=other), longer):
            assert not shown(marks, ids, start, unlike)
        assert not Marks().stand_for(chunk, ids[start : start + chunk.n_positions])


@settings(deadline=None)
@given(runs, st.integers(0, 20))
def test_media_that_begin_behind_the_end_are_forgotten(context: list[Run], end: int) -> None:
    marks, ids, media = context_of(context)
    marks.read(ids[:end], marks.shown)
    kept = [(start, chunk) for start, chunk in media if start < end]
    assert marks.modality == modalities.of(chunk.modality for _, chunk in kept)
    assert marks.shown == {int(ids[start]): chunk.identity for start, chunk in kept}


@settings(deadline=None)
@given(runs)
def test_a_restored_context_shows_what_it_says_and_nothing_twice_that_it_does_not_say(
    context: list[Run],
) -> None:
    marks, ids, media = context_of(context)
    told, untold = Marks(), Marks()
    told.read(ids, marks.shown)
    untold.read(ids, {})
    assert told.modality == untold.modality == marks.modality
    for start, chunk in media:
        assert shown(told, ids, start, chunk)
        assert not shown(untold, ids, start, chunk)
    for restored in (told, untold):
        assert restored.add(MEDIA[0], 1) not in ids


def test_a_picture_in_the_context_never_matches_another_picture_or_text() -> None:
    llama = steered(DEMO, vector(DEMO, opens=CLOSED), mmproj=DEMO_MMPROJ)
    reference = plain(DEMO, mmproj=DEMO_MMPROJ)
    chat(llama, IMAGE, 1)
    ids = llama.input_ids[: llama.n_tokens].copy()
    assert (ids < 0).sum() > 0
    assert len(set(ids[ids < 0])) == 1
    prompt = np.where(ids < 0, 0, ids).tolist()
    logits = complete(llama, prompt)
    assert np.array_equal(logits, complete(evaluated(reference, prompt[: prompt.index(0)]), prompt))
    chat(llama, [user(QUESTION, picture(5))], 1)
    assert set(llama.input_ids[: llama.n_tokens]).isdisjoint(ids[ids < 0])


def test_negative_token_ids_from_outside_never_reach_a_picture_in_the_cache() -> None:
    llama = steered(DEMO, mmproj=DEMO_MMPROJ)
    chat(llama, IMAGE, 1)
    ids = llama.input_ids[: llama.n_tokens].tolist()
    others = [id - 2 if id < 0 else id for id in ids]
    for odd in (others, [*ids, *ids]):
        with pytest.raises(ModelError, match=r"token id -\d+, expected ids from 0 to"):
            llama.create_completion([*odd, *tokens_of(llama, "Hello.")], max_tokens=1)
