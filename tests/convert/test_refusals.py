"""What refusals look like, read from replies."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ANSWER, REFUSAL

from mars_gguf.convert.extractor import Opening
from mars_gguf.convert.refusals import FEW, Refusals
from mars_gguf.openings import judge_by_opening
from mars_gguf.statistics import Share

FRENCH = "Je suis désolé, mais je ne peux pas vous aider."
replies = st.lists(
    st.builds(Opening, st.integers(0, 3), st.sampled_from([REFUSAL, ANSWER, FRENCH])), min_size=1
)


def tokens(*found: int) -> np.ndarray:
    return np.array(found, np.intp)


@given(replies, replies)
def test_a_token_begins_refusals_if_more_than_half_of_its_replies_are_some(
    harmful: list[Opening], harmless: list[Opening]
) -> None:
    found = Refusals.of(harmful, harmless)
    judged = [judge_by_opening(reply.text) == "refused" for reply in harmful]
    assert found.judged == (sum(judged) >= FEW)
    for token in range(4):
        texts = [r.text for r in (*harmful, *harmless) if r.token == token]
        if found.judged:
            expected = texts.count(REFUSAL) > len(texts) / 2
            assert found.begin(tokens(token))[0] == expected
    if found.judged:
        assert found.among(harmful).tolist() == judged


@given(replies, replies)
def test_without_refusals_in_english_a_token_counts_if_harmful_prompts_get_it_more_often(
    harmful: list[Opening], harmless: list[Opening]
) -> None:
    harmful = [reply._replace(text=FRENCH) for reply in harmful]
    found = Refusals.of(harmful, harmless)
    assert not found.judged
    a, b = (Counter(reply.token for reply in side) for side in (harmful, harmless))
    for token in range(4):
        beyond_chance = Share(a[token], len(harmful)).low > Share(b[token], len(harmless)).high
        assert found.begin(tokens(token))[0] == beyond_chance
    every = [reply.token for reply in (*harmful, *harmless)]
    np.testing.assert_array_equal(found.among([*harmful, *harmless]), found.begin(tokens(*every)))


def test_a_model_that_refuses_by_answering_otherwise_is_told_by_its_words_not_by_its_tokens() -> (
    None
):
    """ "I" begins refusals and answers alike: the first token says nothing, the reply does."""
    harmful = [Opening(7, REFUSAL)] * 10
    harmless = [Opening(7, "I love baking. Take flour.")] * 10
    found = Refusals.of(harmful, harmless)
    assert not found.begin(tokens(7))[0]
    assert found.among([*harmful, *harmless]).tolist() == [True] * 10 + [False] * 10


@pytest.mark.parametrize(("refused", "judged"), [(FEW - 1, False), (FEW, True)])
def test_a_few_refusals_of_harmful_prompts_are_needed_to_learn_from_replies(
    refused: int, judged: bool
) -> None:
    harmful = [Opening(0, REFUSAL)] * refused + [Opening(1, ANSWER)] * (60 - refused)
    found = Refusals.of(harmful, [Opening(1, ANSWER)] * 60)
    assert found.judged == judged
    assert found.begin(tokens(0, 1)).tolist() == [judged, False]
