"""A reply followed token by token: where its thought ends and its answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf.reasoning import KNOWN, Markers
from mars_gguf.runtime.judging import Steering
from mars_gguf.runtime.replies import Reply, Thoughts

THINK, CHANNEL = KNOWN[:2]


def reply(*, begun: bool, whole: bool = False, markers: Any = THINK) -> Reply:
    """A reply that has come to its first token."""
    made = Reply(Thoughts(markers, lambda token: PIECES[token].encode(), begun, whole))
    made.begin()
    return made


PIECES = ["<think>", "</think>", "\n\n", " ", "Hm", "Tea", "<", "/", "think", ">", "</", ">\n",
          ">Yes", "<|channel>", "thought", "<channel|>", "final"]  # fmt: skip


def told(pieces: Sequence[str], **options: Any) -> list[str]:
    """The state of a reply after each of its tokens."""
    each, states = reply(**options), []
    for piece in pieces:
        each.take(PIECES.index(piece))
        states.append(each.state)
    return states


@pytest.mark.parametrize(
    ("pieces", "options", "states"),
    [
        (["Hm", "</think>", "\n\n", "Tea", "Tea"], {"begun": True},
         ["thought", "candidate", "candidate", "answer", "answer"]),
        (["Hm", "</", "think", ">", "Tea"], {"begun": True},
         ["thought", "thought", "thought", "candidate", "answer"]),
        (["</", "think", ">\n", "Tea"], {"begun": True},
         ["thought", "thought", "candidate", "answer"]),
        (["</", "think", ">Yes"], {"begun": True}, ["thought", "thought", "answer"]),
        (["Tea"], {"begun": False}, ["answer"]),
        (["\n\n", "<think>", "Hm", "</think>", "Tea"], {"begun": False, "whole": True},
         ["candidate", "thought", "thought", "candidate", "answer"]),
        (["<", "think", ">", "Hm", "</think>"], {"begun": False},
         ["marker", "marker", "thought", "thought", "candidate"]),
        (["<", "Tea"], {"begun": False}, ["marker", "answer"]),
        (["<", "Tea"], {"begun": False, "whole": True}, ["answer", "answer"]),
        (["</think>", "<think>", "Hm", "</think>"], {"begun": True},
         ["candidate", "thought", "thought", "candidate"]),
        # A marker that closes nothing: what follows may be the true answer.
        (["Tea", "</think>", " ", "Tea"], {"begun": False},
         ["answer", "candidate", "candidate", "answer"]),
        (["<|channel>", "thought", "\n\n", "Hm", "<channel|>", "Tea"],
         {"begun": False, "markers": CHANNEL},
         ["marker", "thought", "thought", "thought", "candidate", "answer"]),
        (["<|channel>", "final"], {"begun": False, "markers": CHANNEL}, ["marker", "answer"]),
    ],
)  # fmt: skip
def test_the_answer_begins_with_what_is_not_blank_after_the_marker(
    pieces: list[str], options: dict[str, Any], states: list[str]
) -> None:
    assert told(pieces, **options) == states


def test_of_a_draft_nothing_is_evaluated_by_which_the_answer_may_begin() -> None:
    each = reply(begun=True)
    draft = [PIECES.index(piece) for piece in ("Hm", "Tea", "Hm")]
    assert each.alone(draft) == draft[:1]
    for piece in ("</think>", "Tea"):
        each.take(PIECES.index(piece))
    assert each.alone(draft) == draft
    closing = [PIECES.index(piece) for piece in ("Tea", "Hm", "</", "think", ">", "Tea")]
    assert each.alone(closing) == closing[:2]
    apart = reply(begun=False, whole=True)
    apart.take(PIECES.index("Tea"))
    assert apart.alone(closing) == closing[:4]


words = st.text("Tea hot", min_size=1, max_size=12).filter(str.strip)
blanks = st.sampled_from(["", " ", "\n\n"])


@st.composite
def cut_replies(draw: st.DrawFn) -> tuple[Markers, bool, list[str], int]:
    """Markers, whether the prompt begins the thought of a reply, the reply in tokens, and which of
    them holds the first character of the answer that is not blank."""
    markers, begun = draw(st.sampled_from(KNOWN[:2])), draw(st.booleans())
    thought = draw(st.text("Tea <>/\n", max_size=10)) + markers.close
    before = thought if begun else draw(blanks) + draw(st.sampled_from([markers.open, ""]))
    if before.endswith(markers.open):
        before += thought
    before += draw(blanks)
    text = before + draw(words).strip()
    cuts = sorted(draw(st.sets(st.integers(1, len(text) - 1)))) if len(text) > 1 else []
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return markers, begun, pieces, sum(cut <= len(before) for cut in cuts)


@settings(deadline=None)
@given(cut_replies())
def test_the_answer_begins_at_the_same_character_however_the_reply_is_cut_into_tokens(
    case: tuple[Markers, bool, list[str], int],
) -> None:
    markers, begun, pieces, first = case
    each = Reply(Thoughts(markers, lambda token: pieces[token].encode(), begun, whole=False))
    each.begin()
    for token, piece in enumerate(pieces[: first + 1]):
        assert each.waits and not each.answered
        assert each.begins_answer(token) == (token == first)
        if token == first and markers.close not in piece:
            # The state that the answer comes from was read, or weighed where the marker began.
            assert each.reads or each.state == "marker"
        each.take(token)
    assert each.state == "answer" and each.answered
    for token in range(first + 1, len(pieces)):
        each.take(token)
        assert each.state == "answer"


def steering(alpha: float, t: float = 0.0) -> Steering:
    return Steering("text", t, t, 0.0, alpha, 2, None, 0.0)


def test_that_a_token_was_steered_stays_written_down() -> None:
    each = Reply()
    for found, kept in (
        (steering(0.0, 1), 1), (steering(0.0, 2), 2), (steering(5.0, 3), 3), (steering(0.0, 4), 3),
        (steering(6.0, 5), 5),
    ):  # fmt: skip
        each.record(found)
        assert each.steering is not None and each.steering.t == kept


def test_a_reply_goes_on_with_the_token_that_was_sampled_last_where_it_belongs() -> None:
    each = Reply()
    assert not each.goes_on([5], 9, drafts=False)
    each.last = 5, 9
    assert each.goes_on([5], 9, drafts=False)
    for tokens, position in (([6], 9), ([5], 8), ([5, 6], 9)):
        assert not each.goes_on(tokens, position, drafts=False)
    assert not each.goes_on([5, 6], 9, drafts=True)  # a prompt: nobody is at the next token
    with each.step():
        assert each.goes_on([5, 6], 9, drafts=True)
    with pytest.raises(KeyError), each.step():
        raise KeyError
    assert not each.in_step


def test_a_reply_that_is_gone_on_with_by_hand_has_no_thoughts_and_ends_the_one_before() -> None:
    fresh = Reply().by_hand()
    assert (fresh.state, fresh.waits) == ("prompt", True)
    before = reply(begun=True)
    before.last = 5, 9
    before.record(steering(2.0))
    after = before.by_hand()
    assert before.state == "over" and before.waits
    assert (after.state, after.thoughts, after.last) == ("answer", None, (5, 9))
    assert after.steering == before.steering and not after.reads
    assert after.alone([1, 2, 3]) == [1, 2, 3]
