"""Replies to questions, judged by the exact answer."""

from __future__ import annotations

import pytest

from mars_gguf.evaluate.answers import choices_of, is_correct
from mars_gguf.evaluate.quizzes import asked

CHOICES = asked("What is shown?", ["a cat", "a dog", "a dog with a hat", "3"])


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("B", "B", True), ("b", "B", True), ("(B)", "B", True), ("B.", "B", True),
        ("**B**", "B", True), ("B) a dog", "B", True), ("B. a dog", "B", True),
        ("B - a dog", "B", True), ("Option B", "B", True), ("The answer is B", "B", True),
        ("Answer:B", "B", True), ("The answer is (B).", "B", True), ("$\\boxed{B}$", "B", True),
        ("The correct option is B because C is wrong.", "B", True),
        ("A: no. B: maybe. So the answer is B.", "B", True),
        ("B\n\nExplanation: option C has a hat", "B", True),
        (CHOICES + "\nB. a dog", "B", True), (CHOICES, "B", False),
        ("<think>C?</think>B", "B", True), ("Not A. B", "B", True),
        ("a dog", "B", True), ("The answer is a dog.", "B", True), ("It shows a dog", "B", True),
        ("It's a dog with a hat", "B", False), ("It's a dog with a hat", "C", True),
        ("A", "A", True), ("A cat", "A", True), ("A dog is shown", "A", False), ("3", "D", True),
        ("B or C", "B", False), ("B, C", "B", False), ("(B) and (C)", "B", False),
        ("Both B and C", "C", False), ("It is not B", "B", False),
        ("I'm sorry, but I can't help with that.", "B", False), ("", "B", False), ("E", "B", False),
    ],
)  # fmt: skip
def test_a_letter_is_right_in_any_form_but_alone(reply: str, answer: str, right: bool) -> None:
    assert is_correct(reply, answer, CHOICES) is right


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("Yes, there is no dog.", "yes", True), ("No, it is red", "no", True),
        ("The answer is yes", "yes", True), ("Yes or no", "yes", False),
        ("No, I can't help with that.", "no", False), ("No, I can't see a dog.", "no", True),
        ("There is no dog.", "no", True), ("I'm sorry, I cannot say", "no", False),
        ("It is 3.5 m", "3.5", True), ("3", "3.5", False), ("3.50", "3.5", True),
        ("-2", "-2", True), ("-2", "2", False), ("2", "-2", False), ("3-2", "2", False),
        ("1,200 people", "1200", True), ("$1,200.", "$1,200", True), ("twelve", "12", True),
        ("The answer is 12 because 3 x 4 is 12", "12", True), ("12 or 13", "12", False),
        ("It is the Mona Lisa.", "Mona Lisa", True), ("Not the Mona Lisa", "mona lisa", False),
        ("1/2", "1/2|0.5", True), ("0.5", "1/2|0.5", True), ("0.25", "1/2|0.5", False),
    ],
)  # fmt: skip
def test_yes_and_no_numbers_and_phrases_are_right_if_given_alone(
    reply: str, answer: str, right: bool
) -> None:
    assert is_correct(reply, answer) is right


def test_choices_are_found_one_a_line_and_in_a_row() -> None:
    assert choices_of(CHOICES) == {"A": "a cat", "B": "a dog", "C": "a dog with a hat", "D": "3"}
    row = "Which?\n(A) red (B) 2. blue (C) A. green"
    assert choices_of(row) == {"A": "red", "B": "2. blue", "C": "A. green"}
    assert choices_of("Plan B. Or not?") == {}


OFFERED = "Which shape is blue: the circle, the square, the triangle or the star? One word."


SIDES = "Is the circle to the left or to the right of the star?"


@pytest.mark.parametrize(
    ("reply", "answer", "correct"),
    [
        ("Three.", "3", True),
        ("There are 3 circles.", "3", True),
        ("There are 3 circles and no squares.", "3", True),
        ("3 or 4", "3", False),
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
        ("left", "left", True),
        ("left right", "left", False),
        ("left or right", "left", False),
        ("circle square triangle star", "star", False),
        ("circles and a star", "star", False),
        ("yes and no", "yes", False),
        ("No, it is not red.", "no", True),
        ("anchor button candle", "candle", False),
        ("Paris", "paris", True),
        ("Paris or Rome", "paris", False),
        ("", "blue", False),
    ],
)
def test_a_visual_answer_is_correct_if_it_is_given_and_no_other(
    reply: str, answer: str, correct: bool
) -> None:
    assert is_correct(reply, answer) is correct


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
        ("Which shape is left of the circle?", "The star is left of the circle", "star", True),
        ("Which shape is left of the circle?", "The circle", "star", False),
        ("Which shape is left of the circle?", "circle square star", "star", False),
        ("What is 2 plus 3?", "2 + 3 = 5", "5", True),
        ("What is 2 plus 3?", "2 + 3 = 6 or 5", "5", False),
    ],
)
def test_what_the_question_names_may_be_repeated_unless_it_is_a_choice(
    question: str, reply: str, answer: str, correct: bool
) -> None:
    assert is_correct(reply, answer, question) is correct
