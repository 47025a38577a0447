"""A reply followed token by token: where its thought ends and its answer begins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_gguf.reasoning import KNOWN, Markers
from mars_gguf.runtime.judging import Steering
from mars_gguf.runtime.replies import EVENTS, STATES, TABLE, Reply, Thoughts

THINK, CHANNEL = KNOWN[:2]
PAGE = Path(__file__).parents[2] / "docs" / "ARCHITECTURE.md"
PIECES = ["<think>", "</think>", "\n\n", " ", "Hm", "Tea", "<", "/", "think", ">", "</", ">\n",
          ">Yes", "<|channel>", "thought", "<channel|>", "final"]  # fmt: skip


def thoughts(pieces: Sequence[str], *, begun: bool, whole: bool, markers: Markers) -> Thoughts:
    return Thoughts(markers, lambda token: pieces[token].encode(), begun, whole)


def reply(*, begun: bool, whole: bool = False, markers: Markers = THINK) -> Reply:
    return Reply(thoughts(PIECES, begun=begun, whole=whole, markers=markers))


# The table ---------------------------------------------------------------------------------------


def test_every_state_has_one_transition_for_every_event() -> None:
    assert tuple(TABLE) == STATES
    assert all(tuple(transitions) == EVENTS for transitions in TABLE.values())
    assert {t.next for row in TABLE.values() for t in row.values()} == set(STATES)
    assert {t.next for t in TABLE["over"].values()} == {"over"}


def test_the_page_of_the_architecture_shows_the_table() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## The states of a reply")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| `(\w+)` \| (.*?) \|$", section, re.MULTILINE)
    shown = {
        (state, event): (following, done or None)
        for state, events, following, done in rows
        for event in re.findall(r"`(\w+)`", events)
    }
    moves = {
        (state, event): (following, action)
        for state, row in TABLE.items()
        for event, (following, action) in row.items()
        if following != state or action
    }
    assert shown == moves


def slowly(text: str, markers: Markers, *, begun: bool) -> list[str]:
    """The states behind each letter of ``text``."""
    state, since, states = "thought" if begun else "candidate", "", []
    for letter in text:
        before, since = state, since + letter
        if before in ("thought", "answer"):
            state = "candidate" if since.endswith(markers.close) else before
        elif since := since.lstrip():
            state = "marker" if markers.open.startswith(since) else "answer"
            state = "thought" if since == markers.open else state
        if state != before and state in ("thought", "candidate"):
            since = ""
        states.append(state)
    return states


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(range(len(PIECES))), max_size=12),
    st.booleans(),
    st.sampled_from([THINK, CHANNEL]),
)
def test_a_reply_is_where_reading_all_of_its_text_letter_by_letter_leads(
    drawn: list[int], begun: bool, markers: Markers
) -> None:
    each, said = reply(begun=begun, markers=markers), ""
    states, answered = [each.state], False
    for token in drawn:
        said += PIECES[token]
        n = len(states) - 1
        states = [states[0], *slowly(said, markers, begun=begun)]  # type: ignore[list-item]
        new = states[n:]
        begins = any(b == "answer" != a for a, b in pairwise(new))
        assert each.judges(token) == begins
        each.take(token)
        for state in new[1:]:
            answered = state == "answer" or (answered and state == "candidate")
        assert (each.state, each.answered) == (states[-1], answered)
        assert each.thought_ended == any(b == "candidate" != a for a, b in pairwise(states))
        assert each.unreached == (states[-1] != "answer" and not answered)


# In words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "options", "states"),
    [
        (["Hm", "</think>", "\n\n", "Tea", "Tea"], {"begun": True},
         ["thought", "candidate", "candidate", "answer", "answer"]),
        (["</", "think", ">Yes"], {"begun": True}, ["thought", "thought", "answer"]),
        (["\n\n", "<think>", "Hm", "</think>", "Tea"], {"begun": False, "whole": True},
         ["candidate", "thought", "thought", "candidate", "answer"]),
        (["<", "think", ">", "Hm", "</think>"], {"begun": False},
         ["marker", "marker", "thought", "thought", "candidate"]),
        (["<", "Tea"], {"begun": False}, ["marker", "answer"]),
        (["<", "Tea"], {"begun": False, "whole": True}, ["answer", "answer"]),
        # A marker that closes nothing: what follows may be the true answer.
        (["Tea", "</think>", " ", "Tea"], {"begun": False},
         ["answer", "candidate", "candidate", "answer"]),
        (["<|channel>", "final"], {"begun": False, "markers": CHANNEL}, ["marker", "answer"]),
    ],
)  # fmt: skip
def test_the_answer_begins_with_what_is_not_blank_after_the_marker(
    pieces: list[str], options: dict[str, Any], states: list[str]
) -> None:
    each, found = reply(**options), []
    for piece in pieces:
        each.take(PIECES.index(piece))
        found.append(each.state)
    assert found == states


def test_a_blank_that_comes_from_a_steered_state_begins_the_answer() -> None:
    each = reply(begun=False)
    each.take(PIECES.index(" "))
    assert each.state == "candidate"
    each.take(PIECES.index(" "), steered=True)
    assert each.state == "answer" and each.kept is None


def test_of_a_draft_nothing_is_evaluated_by_which_the_answer_may_begin() -> None:
    each = reply(begun=True)
    draft = [PIECES.index(piece) for piece in ("Hm", "Tea", "Hm")]
    assert each.evaluable(draft) == draft[:1]
    for piece in ("</think>", "Tea"):
        each.take(PIECES.index(piece))
    assert each.evaluable(draft) == draft
    closing = [PIECES.index(piece) for piece in ("Tea", "Hm", "</", "think", ">", "Tea")]
    assert each.evaluable(closing) == closing[:2]
    single = reply(begun=False, whole=True)
    single.take(PIECES.index("Tea"))
    assert single.evaluable(closing) == closing[:4]


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
def test_the_state_that_an_answer_comes_from_is_read_however_the_reply_is_cut_into_tokens(
    case: tuple[Markers, bool, list[str], int],
) -> None:
    markers, begun, pieces, first = case
    each = Reply(thoughts(pieces, begun=begun, whole=False, markers=markers))
    for token, piece in enumerate(pieces[: first + 1]):
        assert each.judges(token) == (token == first)
        if token == first and markers.close not in piece:
            # Or weighed where the marker began.
            assert each.reads or each.state == "marker"
        each.take(token)
    assert each.state == "answer"


# Whose reply it is -------------------------------------------------------------------------------


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
    assert not each.continues([5], 9, drafts=False)
    each.last = 5, 9
    assert each.continues([5], 9, drafts=False)
    for tokens, position in (([6], 9), ([5], 8), ([5, 6], 9)):
        assert not each.continues(tokens, position, drafts=False)
    assert not each.continues([5, 6], 9, drafts=True)  # a prompt: nobody is at the next token
    with each.step():
        assert each.continues([5, 6], 9, drafts=True)
    with pytest.raises(KeyError), each.step():
        raise KeyError
    assert not each.in_step


def test_a_reply_that_is_gone_on_with_by_hand_has_no_thoughts_and_ends_the_one_before() -> None:
    assert Reply().by_hand().state == "prompt"
    before = reply(begun=True)
    before.last = 5, 9
    before.record(steering(2.0))
    after = before.by_hand()
    assert before.state == "over"
    assert (after.state, after.thoughts, after.last) == ("answer", None, (5, 9))
    assert after.steering == before.steering and not after.reads
    assert after.evaluable([1, 2, 3]) == [1, 2, 3]
