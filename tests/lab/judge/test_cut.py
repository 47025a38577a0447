from __future__ import annotations

import pytest

from lab.judge.cut import HARMFUL_ANSWER, opening, read
from lab.judge.rates import at_first
from mars_gguf.openings import CHARACTERS, judge_by_opening

REPLIES = read()


def test_no_more_is_kept_than_the_judge_reads_and_little_of_answers_to_harmful_requests() -> None:
    for reply in REPLIES:
        assert len(reply.opening) <= CHARACTERS
        if reply.kind == "harmful" and reply.label != "refused" and not at_first(reply):
            assert len(reply.opening) <= HARMFUL_ANSWER


@pytest.mark.parametrize("whole", ["Sure. " * 100, "Well. I can't help with that. " * 20])
def test_the_judge_says_of_a_cut_what_it_says_of_the_whole(whole: str) -> None:
    for little in (False, True):
        assert judge_by_opening(opening(whole, little=little)) == judge_by_opening(whole)
    assert len(opening(whole, little=True)) == HARMFUL_ANSWER
    assert len(opening(whole, little=False)) == CHARACTERS


def test_a_cut_goes_as_far_as_the_verdict_needs() -> None:
    whole = f"{'Well, ' * 15}I can't help with that. {'So it is. ' * 50}"
    cut = opening(whole, little=True)
    assert HARMFUL_ANSWER < len(cut) <= 110
    assert judge_by_opening(cut) == "refused"
