"""Decides whether a reply to a question gives the exact right answer and no other.

An answer is a number ("3", "-2.5"), or words in lower case, "yes" and "no" among them. Several
answers, each of them right, are separated by "|".
"""

from __future__ import annotations

import re

from mars_gguf.evaluate.visual_questions import WORDS
from mars_gguf.openings import judge_by_opening, plain

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
SORTS = [  # an answer's rivals are the others of its sort
    frozenset(words.split())
    for words in (
        "red green blue yellow purple black white grey gray orange pink brown cyan magenta violet "
        "turquoise teal beige maroon indigo gold silver",
        "circle square triangle star rectangle oval ellipse diamond hexagon pentagon cube sphere",
        "left right middle center centre",
        "yes no",
        " ".join(WORDS).lower(),
    )
]
_CLAUSES = re.compile(r"[.,;:!?()\"]| - |\b(?:and|but)\b")
_DENIAL = re.compile(r"\b(?:not|never|no|neither|nor|cannot|without)\b|n't\b")
_A_NUMBER = re.compile(rf"(minus )?\b(\d+(?:·\d+)?|{'|'.join(NUMBERS)})\b")


def is_correct(reply: str, answer: str, question: str = "") -> bool:
    """Decides whether a reply to a question gives its exact ``answer`` and no other.

    For "yes" and "no" the first word decides; a refusal is neither. The others are right if no
    other of the sort (`SORTS`, or any number) is given: a clause with a negation names nothing
    ("not red but blue" gives blue, "it isn't blue" does not), lists and "blue or ..." are wrong.
    Sentences of the question do not count where the reply repeats them, nor do others of the sort
    that it names, unless it offers the answer beside them. Of an answer of no known sort, other
    answers cannot be told.
    """
    return any(_gives(reply, each.strip(), question) for each in answer.split("|"))


def _gives(reply: str, answer: str, question: str) -> bool:
    answer = _number(answer) or _words(plain(answer))
    sort = next((sort for sort in SORTS if answer in sort), frozenset({answer}))
    asked, text = _plain(question), _plain(reply)
    for sentence in re.split(r"(?<=[.?!]) ", asked):
        text = text.replace(sentence, " . ") if sentence else text
    if "no" in sort and judge_by_opening(reply) == "refused":
        return False  # "No, I can't help with that."
    if "no" in sort and (first := re.match(r"\W*(yes|no)\b(?! (?:and|or)\b)", text)):
        return first[1] == answer
    given: set[str] = set()
    for clause in _CLAUSES.split(text):
        if _DENIAL.search(clause) and "no" not in sort:
            continue
        named = _named(clause, sort, answer)
        if named and "or" in clause.split():
            return False
        given |= named
    offered = _named(asked, sort, answer)
    return given - (set() if answer in offered else offered) == {answer}


def _named(text: str, sort: frozenset[str], answer: str) -> set[str]:
    """Finds those of the sort that a text names; other than the answer, also in the plural."""
    if _number(answer):
        return {_value(*match) for match in _A_NUMBER.findall(text)}
    if " " in answer:
        return {answer} if f" {answer} " in f" {_words(text)} " else set()
    words = re.findall(r"[^\W_]+", text)
    others = {word.removesuffix("s") for word in words} - {answer}
    return {*words, *others} & sort


def _plain(text: str) -> str:
    """Reduces a text to words as `plain` does, with numbers kept whole."""
    text = re.sub(r"(?<![\w.)])[-−](?=\d)", "minus ", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"(?<=\d)\.(?=\d)", "·", plain(text))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text))


def _number(answer: str) -> str:
    """Writes a number as `_value` does; "" if the answer is none."""
    found = re.fullmatch(r"(-?)(\d[\d,]*(?:\.\d+)?)", answer)
    return _value(found[1], found[2].replace(",", "")) if found else ""


def _value(sign: str, number: str) -> str:
    value = NUMBERS.index(number) if number in NUMBERS else float(number.replace("·", "."))
    return f"{-value if sign else value:.12g}"
