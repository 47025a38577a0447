"""Makes of the rows of published questions with one right answer, multiple choice and yes/no, what
their columns alone do not say. `named_columns` reads tables of any columns."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.answers import choices_of, is_letter
from mars_gguf.evaluate.benchmark import Benchmark, Names
from mars_gguf.evaluate.cases import MAX_PROMPT, Unusable
from mars_gguf.evaluate.parquet import in_cell
from mars_gguf.evaluate.tables import FILE, PLACE, Row, json_in, listed, table, texts_in

ONE_LETTER = "Answer with the letter of the right choice only."
IN_SHORT = "Answer with a number, a word or a short phrase only."
YES_OR_NO = "Please answer yes or no."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def asked(question: str, choices: Sequence[str]) -> str:
    """Writes a question with its choices, each under a letter."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, "", *lines, "", ONE_LETTER])


def choices_in(cell: str) -> list[str]:
    """Reads the choices that a cell lists, in JSON or as Python writes a list. Raises Unusable."""
    found = _list_in(cell)
    if found is None:
        raise Unusable(f"choices {cell!r:.40}, expected a list")
    if not 2 <= len(found) <= len(LETTERS):
        raise Unusable(f"{len(found)} choices, expected 2 to {len(LETTERS)}")
    return found


def _list_in(cell: str) -> list[str] | None:
    found = json_in(cell)
    if found is None and 0 < len(cell) <= MAX_PROMPT:
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found = ast.literal_eval(cell)
    if isinstance(found, dict):  # by letter
        found = [found[letter] for letter in sorted(found, key=str)]
    return [str(each).strip() for each in found] if isinstance(found, list) else None


def letter_of(answer: str, choices: Sequence[str]) -> str:
    """Finds the letter of the choice that an answer names: by its words, its letter or its place,
    counted from 0. Raises Unusable."""
    letters = LETTERS[: len(choices)]
    same = [i for i, choice in enumerate(choices) if choice.casefold() == answer.casefold()]
    if len(same) == 1:
        return letters[same[0]]
    if is_letter(answer.upper()) and answer.upper() in letters:
        return answer.upper()
    if len(answer) <= 2 and answer.isdecimal() and int(answer) < len(choices):
        return letters[int(answer)]
    raise Unusable(f"answer {answer!r:.40}, expected one of {len(choices)} choices")


def in_words(answer: str, question: str = "") -> str:
    """Writes an answer, or a list of right ones, as `answers` takes it: the letter, where the
    question lists choices, else in lower case. Raises Unusable if there is none."""
    listing = _list_in(answer) if answer.startswith("[") else None
    right = [each.strip().rstrip(".") for each in listing or [answer]]
    if not all(re.search(r"\w", each) for each in right):
        raise Unusable(f"answer {answer!r:.40}, expected a letter, a number or words")
    choices = choices_of(question)
    return "|".join(
        each.upper() if each.upper() in choices or is_letter(each) else each.lower()
        for each in right
    )


def _with_pictures_named(text: str) -> str:
    """Writes the authors' marks, <image 1> and so on, in words: pictures go before the prompt."""
    return re.sub(r"<image (\d)>", r"(picture \1)", text)


def _mmmu_question(row: Row) -> str:
    question = _with_pictures_named(row["question"])
    if not question or row["question_type"] != "multiple-choice":
        return f"{question}\n\n{IN_SHORT}" if question else ""
    return asked(question, [_with_pictures_named(each) for each in choices_in(row["options"])])


def _mmmu_answer(row: Row) -> str:
    if row["question_type"] != "multiple-choice":
        return in_words(row["answer"])
    return letter_of(row["answer"], choices_in(row["options"]))


MME_TASKS = (
    "existence count position color posters celebrity scene landmark artwork OCR "
    "commonsense_reasoning numerical_calculation text_translation code_reasoning"
).split()
MME_FILES = (
    "test-*.parquet",
    "data/test-*.parquet",
    *(
        f"{root}{task}/{folder}*.txt"
        for root in ("", "MME_Benchmark/")
        for task in MME_TASKS
        for folder in ("", "questions_answers_YN/")
    ),
)


def _mme_rows(path: Path, columns: Iterable[str]) -> Iterator[Row]:
    """Reads a Parquet file, or the text file of a picture, and counts the questions about one
    picture."""
    nth: Counter[str] = Counter()
    for row in _mme_lines(path) if path.suffix == ".txt" else table(path, columns):
        nth[row["question_id"]] += 1
        yield row | {"nth": str(nth[row["question_id"]])}


def _mme_lines(path: Path) -> Iterator[Row]:
    """Reads a file of two lines, each a question and an answer parted by a tab."""
    folder = path.resolve().parent
    task = (folder.parent if folder.name == "questions_answers_YN" else folder).name
    try:
        lines = path.read_bytes()[:MAX_PROMPT].decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MarsError(f"{path}: cannot be read ({error})") from error
    about = {PLACE: f"{task}-{path.stem}", "question_id": f"{task}/{path.stem}", "category": task}
    for line in filter(None, map(str.strip, lines)):
        question, _, answer = map(str.strip, line.rpartition("\t"))
        cells = {"question": question, "answer": answer, "image": path.stem}
        yield defaultdict(str, about | cells)


def _mme_picture(row: Row) -> list[Names]:
    """The picture of a text file lies beside it, or in a folder beside its own."""
    if in_cell(row["image"]):
        return [[row["image"]]]
    folders, ends = (row["category"], "images"), (".jpg", ".png", ".jpeg")
    return [[f"{folder}/{row['image']}{end}" for folder in folders for end in ends]]


NAMED = ("question", "answer", "image", "choices", "id", "category", "group")


def named_columns(query: str) -> Benchmark:
    """Reads "question=COLUMN&answer=COLUMN&...", which says what the columns of a table are (see
    `NAMED`). Raises MarsError."""
    columns = dict(parse_qsl(query))
    if unknown := set(columns) - set(NAMED):
        raise MarsError(f"table: found {listed(unknown)}, expected {', '.join(NAMED)}")
    if missing := {"question", "answer"} - set(columns):
        raise MarsError(
            f"table: which column is {listed(missing)}? expected "
            "table:FILE?question=COLUMN&answer=COLUMN, and as wanted "
            + ", ".join(f"{name}=COLUMN" for name in NAMED[2:])
        )

    def cells(row: Row) -> list[str]:
        return [row[columns[name]] if name in columns else "" for name in NAMED[:4]]

    def prompt(row: Row) -> str:
        question, _, _, choices = cells(row)
        return asked(question, choices_in(choices)) if question and choices else question

    def answer(row: Row) -> str:
        question, right, _, choices = cells(row)
        return letter_of(right, choices_in(choices)) if choices else in_words(right, question)

    def pictures(row: Row) -> list[Names]:
        _, _, cell, _ = cells(row)
        several = texts_in(cell) if cell.startswith("[") else None
        return [[name] for name in ([cell] * (cell != "") if several is None else several)]

    return Benchmark(
        "table",
        columns=tuple(columns.values()),
        prompt=prompt,
        kind="vqa",
        number=(columns.get("id", PLACE),),
        category=columns.get("category", ""),
        group=columns.get("group", ""),
        answer=answer,
        media=pictures,
    )


# By the names of data/benchmarks.toml: what that cannot say.
OF_QUIZZES: dict[str, dict[str, Any]] = {
    "mmmu": {
        "prompt": _mmmu_question,
        "category": lambda row: "_".join(row["id"].split("_")[1:-1]),
        "answer": _mmmu_answer,
        "media": lambda row: [[cell] for i in range(1, 8) if (cell := row[f"image_{i}"])],
    },
    "mmstar": {
        "prompt": lambda row: row["question"] and f"{row['question']}\n\n{ONE_LETTER}",
        "answer": lambda row: in_words(row["answer"], row["question"]),
    },
    "mme": {
        "files": MME_FILES,
        "answer": lambda row: in_words(row["answer"]),
        "media": _mme_picture,
        "rows": _mme_rows,
    },
    "pope": {
        "prompt": lambda row: row["text"] and f"{row['text']} {YES_OR_NO}",
        "category": lambda row: row[FILE].rpartition("_")[2],
        "answer": lambda row: in_words(row["label"]),
    },
}
