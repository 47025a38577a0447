"""Published questions with one right answer, by which it is told what steering costs: multiple
choice and yes/no, and tables of any columns.

Checked against what their authors publish: MMMU (its evaluation code), MMStar (its evaluation code,
not its file) and POPE (its files). MME follows the layouts that others' readers agree on.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.answers import choices_of, is_letter
from mars_gguf.evaluate.benchmark import Ask, Benchmark, Names, one_of, with_cells
from mars_gguf.evaluate.cases import MAX_PROMPT, Unusable
from mars_gguf.evaluate.parquet import in_cell
from mars_gguf.evaluate.tables import FILE, Row, json_in, listed, table

ONE_LETTER = "Answer with the letter of the right choice only."
IN_SHORT = "Answer with a number, a word or a short phrase only."
YES_OR_NO = "Please answer yes or no."
MAX_CHOICES = 26


def asked(question: str, choices: Sequence[str]) -> str:
    """A question with its choices, each under a letter."""
    lines = [f"{chr(ord('A') + i)}. {choice}" for i, choice in enumerate(choices)]
    return "\n".join([question, "", *lines, "", ONE_LETTER])


def choices_in(cell: str) -> list[str]:
    """The choices that a cell lists, in JSON or as Python writes a list. Raises Unusable."""
    found = _list_in(cell)
    if found is None:
        raise Unusable(f"choices {cell!r:.40}, expected a list")
    if not 2 <= len(found) <= MAX_CHOICES:
        raise Unusable(f"{len(found)} choices, expected 2 to {MAX_CHOICES}")
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
    """The letter of the choice that an answer is: by its words, its letter or its place, counted
    from 0. Raises Unusable."""
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    same = [i for i, choice in enumerate(choices) if choice.casefold() == answer.casefold()]
    if len(same) == 1:
        return letters[same[0]]
    if answer.upper() in letters:
        return answer.upper()
    if len(answer) <= 2 and answer.isdecimal() and int(answer) < len(choices):
        return letters[int(answer)]
    raise Unusable(f"answer {answer!r:.40}, expected one of {len(choices)} choices")


def in_words(answer: str, question: str = "") -> str:
    """An answer, or a list of right ones, as `answers` takes it: the letter, where the question
    lists choices, else in lower case. Raises Unusable if there is none."""
    listing = _list_in(answer) if answer.startswith("[") else None
    right = [each.strip().rstrip(".") for each in listing or [answer]]
    if not all(re.search(r"\w", each) for each in right):
        raise Unusable(f"answer {answer!r:.40}, expected a letter, a number or words")
    choices = choices_of(question)
    return "|".join(
        each.upper() if each.upper() in choices or is_letter(each) else each.lower()
        for each in right
    )


# MMMU


def _with_pictures_named(text: str) -> str:
    """The authors' marks, <image 1> and so on, in words: pictures go before the prompt."""
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


def _mmmu_pictures(row: Row) -> list[Names]:
    return [[cell] for i in range(1, 8) if (cell := row[f"image_{i}"])]


def _mmmu_subject(row: Row) -> str:
    return "_".join(row["id"].split("_")[1:-1])


# MME

MME_TASKS = (
    "existence count position color posters celebrity scene landmark artwork OCR "
    "commonsense_reasoning numerical_calculation text_translation code_reasoning"
).split()


def _mme_files(path: Path) -> list[Path]:
    if parquet := sorted([*path.glob("test-*.parquet"), *path.glob("data/test-*.parquet")]):
        return parquet
    for folder in (path, path / "MME_Benchmark"):
        if tasks := [folder / name for name in MME_TASKS if (folder / name).is_dir()]:
            return tasks
    raise MarsError(f"{path}: no test-*.parquet, and no folder existence, count, position, ...")


def _mme_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, Row]]:
    """Rows of a Parquet file, or of a task's folder: pictures, and beside them or in another folder
    a text file for each with two lines, question and answer parted by a tab."""
    nth: Counter[str] = Counter()
    for where, row in _mme_folder(path) if path.is_dir() else table(path, columns):
        nth[row["question_id"]] += 1
        yield where, with_cells(row, nth=str(nth[row["question_id"]]))


def _mme_folder(folder: Path) -> Iterator[tuple[str, Row]]:
    apart = (folder / "questions_answers_YN").is_dir()
    for file in sorted((folder / "questions_answers_YN" if apart else folder).glob("*.txt")):
        try:
            lines = file.read_bytes()[:MAX_PROMPT].decode().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise MarsError(f"{file}: cannot be read ({error})") from error
        picture = f"{folder.name}/{'images/' * apart}{file.stem}"
        for line in filter(None, map(str.strip, lines)):
            question, _, answer = line.rpartition("\t")
            yield (
                f"{folder.name}-{file.stem}",
                with_cells(
                    {},
                    question_id=f"{folder.name}/{file.stem}",
                    question=question.strip(),
                    answer=answer.strip(),
                    category=folder.name,
                    image=picture,
                ),
            )


def _mme_picture(row: Row) -> list[Names]:
    names = [row["image"] + end for end in (".jpg", ".png", ".jpeg")]
    return [[row["image"]] if in_cell(row["image"]) else names]


# Tables of any columns

NAMED = ("question", "answer", "image", "choices", "id", "category", "group")


def named_columns(query: str) -> Benchmark:
    """What "question=COLUMN&answer=COLUMN&..." says of a table; see `NAMED`. Raises MarsError."""
    columns = dict(parse_qsl(query))
    if unknown := set(columns) - set(NAMED):
        raise MarsError(f"table: found {listed(unknown)}, expected {', '.join(NAMED)}")
    if missing := {"question", "answer"} - set(columns):
        raise MarsError(
            f"table: which column is {listed(missing)}? expected "
            "table:FILE?question=COLUMN&answer=COLUMN, and as wanted "
            + ", ".join(f"{name}=COLUMN" for name in NAMED[2:])
        )
    return Benchmark(
        "table",
        columns=tuple(columns.values()),
        kind="vqa",
        number=(columns["id"],) if "id" in columns else (),
        category=columns.get("category", ""),
        group=columns.get("group", ""),
        asks=(
            Ask(
                lambda row: _table_question(**_cells(columns, row)),
                media=lambda row: _table_pictures(_cells(columns, row)["image"]),
                answer=lambda row: _table_answer(**_cells(columns, row)),
            ),
        ),
    )


def _cells(columns: Mapping[str, str], row: Row) -> dict[str, str]:
    return {name: row[columns[name]] if name in columns else "" for name in NAMED}


def _table_question(question: str, choices: str, **_: str) -> str:
    return asked(question, choices_in(choices)) if question and choices else question


def _table_answer(question: str, answer: str, choices: str, **_: str) -> str:
    return letter_of(answer, choices_in(choices)) if choices else in_words(answer, question)


def _table_pictures(cell: str) -> list[Names]:
    """None, the one that a cell holds or names, or those that it names in a JSON list."""
    names = json_in(cell) if cell.startswith("[") else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return [[name] for name in names]
    return [[cell]] if cell else []


_ALL = (
    # {subject}/validation-*.parquet of the data set MMMU/MMMU; the answers of its test are not
    # published. Pictures stand in the columns image_1 to image_7.
    Benchmark(
        "mmmu",
        files=("validation-*.parquet", "*/validation-*.parquet"),
        columns=("id", "question", "options", "answer", "question_type"),
        kind="vqa",
        number=("id",),
        category=_mmmu_subject,
        asks=(Ask(_mmmu_question, media=_mmmu_pictures, answer=_mmmu_answer),),
    ),
    # mmstar.parquet of the data set Lin-Chen/MMStar; the question holds the choices.
    Benchmark(
        "mmstar",
        files=("mmstar.parquet", "val*.parquet", "data/val*.parquet"),
        columns=("question", "answer", "category", "l2_category"),
        kind="vqa",
        number=("index",),
        category="category",
        asks=(
            Ask(
                lambda row: row["question"] and f"{row['question']}\n\n{ONE_LETTER}",
                media=one_of("image"),
                answer=lambda row: in_words(row["answer"], row["question"]),
            ),
        ),
    ),
    # The folders of MME_Benchmark_release_version, or data/test-*.parquet of lmms-lab/MME
    Benchmark(
        "mme",
        files=_mme_files,
        columns=("question_id", "question", "answer", "category"),
        kind="vqa",
        number=("question_id", "nth"),
        category="category",
        group="question_id",
        rows=_mme_rows,
        asks=(
            Ask(
                "question",
                media=_mme_picture,
                answer=lambda row: in_words(row["answer"]),
            ),
        ),
    ),
    # output/coco/coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json of
    # AoiDragon/POPE, with the pictures of COCO (val2014) beside them or in a folder val2014
    Benchmark(
        "pope",
        files=("*_pope_random.json", "*_pope_popular.json", "*_pope_adversarial.json"),
        columns=("question_id", "image", "text", "label"),
        kind={"random": "vqa", "popular": "vqa", "adversarial": "vqa"},
        number=("question_id",),
        category=lambda row: row[FILE].rpartition("_")[2],
        group="image",
        asks=(
            Ask(
                lambda row: row["text"] and f"{row['text']} {YES_OR_NO}",
                media=one_of("image", "val2014", "images"),
                answer=lambda row: in_words(row["label"]),
            ),
        ),
    ),
)
QUIZZES = {quiz.name: quiz for quiz in _ALL}
