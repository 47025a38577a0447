"""Decides whether a reply to a question gives the exact right answer and no other.

How a reply is judged follows from the answer: one letter in upper case is that of a choice, others
are numbers ("3", "-2.5", "1,200"), or words in lower case, "yes" and "no" among them. Several
answers, each of them right, stand apart by "|".
"""

from __future__ import annotations

import re

from mars_gguf.evaluate.visual_questions import WORDS
from mars_gguf.openings import judge_by_opening, plain, without_thoughts

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
_IS_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d,]*(?:\.\d+)?%?")
_A_NUMBER = re.compile(rf"(minus )?\b(\d+(?:·\d+)?|{'|'.join(NUMBERS)})\b")
_DECLARED = re.compile(
    r"(?i)\b(?:answer|correct (?:option|choice))\s*(?:(?:is|would be|should be)\b\s*:?|:)\s*"
)


def is_correct(reply: str, answer: str, question: str = "") -> bool:
    """Decides whether a reply to a question gives its exact ``answer`` and no other.

    Where the reply says what "the answer is", that sentence is judged, otherwise all of it.
    Sentences of the question do not count where the reply repeats them.

    A letter may stand as in "(B)", "B. A dog" or "Option B"; in its place the words of a choice
    may. For "yes" and "no" the first word decides; a refusal is neither. The others are right if no
    other of the sort (`SORTS`, or any number) is given: a clause with a negation names nothing
    ("not red but blue" gives blue, "it isn't blue" does not), lists and "blue or ..." are wrong.
    Others of the sort that the question names do not count, unless it offers the answer beside
    them. Of an answer of no known sort, other answers cannot be told.
    """
    return any(
        letter_given(reply, question) == each if is_letter(each) else _gives(reply, each, question)
        for each in map(str.strip, answer.split("|"))
    )


def is_letter(answer: str) -> bool:
    return len(answer) == 1 and "A" <= answer <= "Z"


def choices_of(question: str) -> dict[str, str]:
    """Finds the choices that a question lists as "A. ...", "(A) ..." or "A: ...", from A on, one a
    line or in a row; none, if it lists fewer than two."""
    found: list[re.Match[str]] = []
    for mark in re.finditer(r"(?:^|(?<=[\s(,;]))([A-Z])[.):]\s", question):
        if mark[1] == chr(ord("A") + len(found)):
            found.append(mark)
    if len(found) < 2:
        return {}
    ends = [*(mark.start() for mark in found[1:]), len(question)]
    return {
        mark[1]: question[mark.end() : end].partition("\n")[0].strip(" ,;.(")
        for mark, end in zip(found, ends, strict=True)
    }


_LETTERS = re.compile(
    r"(?<![\w'’])(?:A(?! (?!because|as|since|and|or|is\b)[a-z])|[B-HJ-Z])(?![\w'’])"
)
_LEADING = re.compile(r"\W*([A-Z])(?:[).:\n]| - |\W*$)(?!\s*(?:and|or|,|/)\s*\(?[A-Z]\b)")


def letter_given(reply: str, question: str = "") -> str:
    """Finds the letter of the one choice that a reply gives; "" if it gives none or several."""
    choices = choices_of(question)
    text = re.sub(r"[*_`$\\{}]|boxed", "", without_thoughts(reply))
    repeated = [line for each in question.split("\n") if (line := each.strip()) and line in text]
    if len(repeated) > 1:  # one may be the choice that is given
        for line in repeated:
            text = text.replace(line, "\n", 1)
    text = text.strip()
    if re.fullmatch(r"\W*[a-z]\W*", text):
        text = text.upper()
    *_, declared = "", *_declared(text)
    letters = set(_LETTERS.findall(declared))
    if not letters and (lead := _LEADING.match(text)):
        letters = {lead[1]}
    letters = letters or _by_words(declared or text, choices) or _undenied(text)
    return letters.pop() if len(letters) == 1 else ""


def _by_words(text: str, choices: dict[str, str]) -> set[str]:
    """Finds the choices whose words stand in a text; of two, one within the other, the longer."""
    said = f" {_words(' '.join(_undenied_clauses(plain(text))))} "
    named = {k: f" {_words(plain(v))} " for k, v in choices.items()}
    named = {k: words for k, words in named.items() if words.strip() and words in said}
    return {
        k
        for k, words in named.items()
        if not any(words in w and words != w for w in named.values())
    }


def _undenied(text: str) -> set[str]:
    clauses = re.split(r"[.,;:!?()\"\n]| - ", text)
    return {x for c in clauses if not _DENIAL.search(plain(c)) for x in _LETTERS.findall(c)}


def _gives(reply: str, answer: str, question: str) -> bool:
    answer = _number(answer) or _words(plain(answer))
    sort = next((sort for sort in SORTS if answer in sort), frozenset({answer}))
    asked, text = _plain(question), _plain(reply)
    for sentence in re.split(r"(?<=[.?!]) ", asked):
        text = text.replace(sentence, " . ") if sentence else text
    *_, text = text, *_declared(text)
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


def _declared(text: str) -> list[str]:
    """Finds what a text says the answer is, up to the end of the sentence, each time it does."""
    ends = [match.end() for match in _DECLARED.finditer(text)]
    said = [re.split(r"[.;!?](?=\s|$)|\n| because ", text[end:])[0] for end in ends]
    return [each for each in said if re.search(r"\w", each)]


def _plain(text: str) -> str:
    """Reduces a text to words as `plain` does, with numbers kept whole."""
    text = re.sub(r"(?<![\w.)])[-−](?=\d)", "minus ", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return re.sub(r"(?<=\d)\.(?=\d)", "·", plain(text))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text))


def _undenied_clauses(text: str) -> list[str]:
    return [clause for clause in re.split(r"[.;:!?]", text) if not _DENIAL.search(clause)]


def _number(answer: str) -> str:
    """Writes a number as `_value` does; "" if the answer is none."""
    if not _IS_NUMBER.fullmatch(answer):
        return ""
    return _value("-" * (answer[0] == "-"), re.sub(r"[^\d.]", "", answer))


def _value(sign: str, number: str) -> str:
    value = NUMBERS.index(number) if number in NUMBERS else float(number.replace("·", "."))
    return f"{-value if sign else value:.12g}"
