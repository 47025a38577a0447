"""Replies to questions, judged by the exact answer."""

from __future__ import annotations

import pytest

from mars_gguf.evaluate.answers import is_correct


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("Yes, there is no dog.", "yes", True), ("No, it is red", "no", True),
        ("The answer is yes", "yes", True), ("Yes or no", "yes", False),
        ("No, I can't help with that.", "no", False), ("No, I can't see a dog.", "no", True),
        ("There is no dog.", "no", True), ("I'm sorry, I cannot say", "no", False),
        ("It is 3.5 m", "3.5", True), ("3", "3.5", False), ("3.50", "3.5", True),
        ("-2", "-2", True), ("-2", "2", False), ("2", "-2", False), ("3-2", "2", False),
        ("1,200 people", "1200", True), ("$1,200.", "1,200", True), ("twelve", "12", True),
        ("The answer is 12", "12", True), ("12 or 13", "12", False),
        ("It is the Mona Lisa.", "Mona Lisa", True), ("Not the Mona Lisa", "mona lisa", False),
        ("a half", "half|0.5", True), ("0.5", "half|0.5", True), ("0.25", "half|0.5", False),
        ("There are 3 circles and no squares.", "3", True),
        ("3, 4, 5", "3", False),
        ("13", "3", False),
        ("The circle is **Blue**.", "blue", True),
        ("red, blue, green", "blue", False),
        ("Blue-green", "blue", False),
        ("It is not blue.", "blue", False),
        ("It isn’t blue.", "blue", False),
        ("I can't tell whether it is blue", "blue", False),
        ("blue or so", "blue", False),
        ("No, it is blue.", "blue", True),
        ("It is not red but blue.", "blue", True),
        ("The circle is blue, not red.", "blue", True),
        ("left right", "left", False),
        ("circle square triangle star", "star", False),
        ("circles and a star", "star", False),
        ("anchor button candle", "candle", False),
        ("", "blue", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_if_it_is_given_and_no_other(
    reply: str, answer: str, right: bool
) -> None:
    assert is_correct(reply, answer) is right


OFFERED = "Which shape is blue: the circle, the square, the triangle or the star? One word."
SIDES = "Is the circle to the left or to the right of the star?"
SHAPE = "Which shape is left of the circle?"


@pytest.mark.parametrize(
    ("question", "reply", "answer", "correct"),
    [
        (OFFERED, "Star", "star", True),
        (OFFERED, OFFERED + " Star", "star", True),
        (OFFERED, OFFERED, "star", False),
        (OFFERED, "The circle, the square, the triangle or the star", "star", False),
        (OFFERED, "circle star", "star", False),
        (SIDES, f"{SIDES.lower()} Left.", "left", True),
        (SIDES, "To the left of the star, not to the right", "left", True),
        (SHAPE, "The star is left of the circle", "star", True),
        (SHAPE, "The circle", "star", False),
        (SHAPE, "circle square star", "star", False),
        ("What is 2 plus 3?", "2 + 3 = 5", "5", True),
        ("What is 2 plus 3?", "2 + 3 = 6 or 5", "5", False),
    ],
)
def test_what_the_question_names_may_be_repeated_unless_it_is_a_choice(
    question: str, reply: str, answer: str, correct: bool
) -> None:
    assert is_correct(reply, answer, question) is correct
