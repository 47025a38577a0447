"""Questions with one right answer, on small files as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
from parquets import parquet, png
from suite_files import facts, own, picture, table

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.answers import is_correct
from mars_gguf.evaluate.quizzes import asked
from mars_gguf.evaluate.suites import Suite, load_suite

RED, BLUE = (255, 0, 0), (0, 0, 255)


def answers(suite: Suite) -> list[str | None]:
    assert {case.kind for case in suite.cases} == {"vqa"}
    return [case.answer for case in suite.cases]


def test_mmmu_with_choices_and_open_questions(tmp_path: Path) -> None:
    row = {"id": "validation_Art_Theory_1", "question": "What is <image 1>?",
           "options": "['a cat', \"a dog's <image 2>\", '3.5']", "explanation": "",
           "image_1": png("red"), "image_2": png("blue"), "answer": "B",
           "question_type": "multiple-choice", "subfield": "x"}  # fmt: skip
    several = {**row, "id": "validation_Art_2", "question": "How much is it?", "options": "[]",
               "image_2": None, "question_type": "open"}  # fmt: skip
    broken = [
        {**row, "id": "validation_Art_4", "answer": "?"},
        {**row, "id": "validation_Art_5", "options": "__import__('os').abort()"},
        {**row, "id": "validation_Art_6", "options": "[" * 9000},
        {**row, "id": "validation_Art_7", "options": "['one']"},
        {**row, "id": "validation_Art_8", "question": ""},
        {**several, "id": "validation_Art_9", "answer": "?"},
    ]
    parquet(
        tmp_path / "Art/validation-00000-of-00001.parquet",
        [row, {**several, "answer": "['1/2', '0.5']"},
         {**several, "id": "validation_Art_3", "answer": "24,000", "image_1": None}, *broken],
    )  # fmt: skip
    parquet(tmp_path / "Art/test-00000-of-00001.parquet", [row])
    suite = load_suite(str(tmp_path))
    assert [(c.id, c.modality, c.category, len(c.media)) for c in suite.cases] == [
        ("validation_Art_Theory_1", "image", "Art_Theory", 2),
        ("validation_Art_2", "image", "Art", 1),
        ("validation_Art_3", "text", "Art", 0),
    ]
    first = suite.cases[0]
    assert first.prompt.startswith(
        "What is (picture 1)?\n\nA. a cat\nB. a dog's (picture 2)\nC. 3.5\n"
    )
    assert [p.getpixel((0, 0)) for p in first.pictures()] == [RED, BLUE]
    assert [part["type"] for part in first.messages()[0]["content"]] == ["image_url"] * 2 + ["text"]
    assert answers(suite) == ["B", "1/2|0.5", "24,000"]
    assert [problem.split(": ", 1)[1][:8] for problem in suite.problems] == [
        "answer '", "choices ", "choices ", "1 choice", "empty pr", "answer '",
    ]  # fmt: skip


def test_mmstar_whose_questions_hold_the_choices(tmp_path: Path) -> None:
    row = {"index": 0, "question": "What is it?\nOptions: A: cat, B: dog, C: 3.5 m",
           "image": png("red"), "answer": "B", "category": "math", "l2_category": "x"}  # fmt: skip
    parquet(tmp_path / "mmstar.parquet", [row, {**row, "index": 1, "answer": ""}])
    suite = load_suite(str(tmp_path))
    assert [(c.id, c.modality, c.category) for c in suite.cases] == [("0", "image", "math")]
    assert answers(suite) == ["B"] and len(suite.problems) == 1
    for reply, right in (("B", True), ("B: dog", True), ("dog", True), ("3.5 m", False)):
        assert is_correct(reply, "B", suite.cases[0].prompt) is right, reply


def test_mme_as_folders_and_as_parquet(tmp_path: Path) -> None:
    lines = ["Is it red? Please answer yes or no.\tYes", "Is it blue? Please answer yes or no.\tNo"]
    root = tmp_path / "MME_Benchmark_release_version/MME_Benchmark"
    for task, text, image in (("color", "", ""), ("posters", "questions_answers_YN/", "images/")):
        picture(root / task / f"{image}1.png", "red")
        (root / task / text).mkdir(exist_ok=True)
        (root / task / f"{text}1.txt").write_text("\n".join(lines) + "\n")
    (root / "color/2.txt").write_text("Is it?\tYes\n")
    cells = [line.split("\t") for line in lines]
    parquet(
        tmp_path / "hub/data/test-0.parquet",
        [
            {"question_id": f"{task}/1", "image": png("red"), "question": question,
             "answer": answer, "category": task}
            for task in ("color", "posters")
            for question, answer in cells
        ],
    )  # fmt: skip
    for name in (root, root.parent, tmp_path / "hub"):
        suite = load_suite(str(name))
        assert [(c.id, c.group, c.category, c.answer) for c in suite.cases] == [
            ("color/1-1", "mme:color/1", "color", "yes"),
            ("color/1-2", "mme:color/1", "color", "no"),
            ("posters/1-1", "mme:posters/1", "posters", "yes"),
            ("posters/1-2", "mme:posters/1", "posters", "no"),
        ]
        assert [case.pictures()[0].getpixel((0, 0)) for case in suite.cases] == [RED] * 4
        assert len(suite.problems) == (name.name != "hub")


def test_pope_groups_the_questions_about_a_picture(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "c.png", "text": "Is there a dog in the image?",
           "label": "yes"}  # fmt: skip
    other = {**row, "question_id": 2, "text": "Is there a cat in the image?", "label": "no"}
    for part in ("random", "popular"):
        own(tmp_path / f"coco_pope_{part}.json", row, other)
    picture(tmp_path / "val2014/c.png", "blue")
    suite = load_suite(str(tmp_path))
    assert [(c.id, c.group, c.category, c.answer) for c in suite.cases] == [
        ("random-1", "pope:c.png", "random", "yes"), ("random-2", "pope:c.png", "random", "no"),
        ("popular-1", "pope:c.png", "popular", "yes"), ("popular-2", "pope:c.png", "popular", "no"),
    ]  # fmt: skip
    assert suite.cases[0].prompt == "Is there a dog in the image? Please answer yes or no."


def test_a_table_says_which_of_its_columns_is_what(tmp_path: Path) -> None:
    picture(tmp_path / "p/1.png", "red")
    rows = [
        ["x1", "Which animal?", "p/1.png", '["cat", "dog"]', "dog", "animals"],
        ["x2", "Which animal?", "", "['cat', 'dog']", "0", "animals"],
        ["x3", "Which animal?", "", '{"B": "dog", "A": "cat"}', "b", "animals"],
        ["x4", "Is it Rome?", "", "", "Yes.", "towns"],
        ["x5", "How far?", '["p/1.png", "p/1.png"]', "", "-1.5", "ways"],
        ["x6", "Which animal?", "", '["cat", "dog"]', "cow", "animals"],
        ["x7", "Which animal?", "../secret.png", "", "cow", "animals"],
        ["x8", "Which animal?", "", "", "", "animals"],
    ]
    path = table(tmp_path / "t.csv", "n,ask,see,among,right,sort", *rows)
    query = "question=ask&answer=right&image=see&choices=among&id=n&category=sort&group=sort"
    suite = load_suite(f"table:{path}?{query}")
    assert suite.name == "table:t.csv"
    assert answers(suite) == ["B", "A", "B", "yes", "-1.5"]
    assert [case.modality for case in suite.cases] == ["image", "text", "text", "text", "image"]
    assert [len(case.media) for case in suite.cases] == [1, 0, 0, 0, 2]
    assert suite.cases[0].prompt == asked("Which animal?", ["cat", "dog"])
    assert {case.group for case in suite.cases[:3]} == {"table:animals"}
    assert [problem[:7] for problem in suite.problems] == ["t-6: an", "t-7: '.", "t-8: an"]

    lines = own(tmp_path / "t.jsonl", {"q": "Is it?", "a": "no"})
    assert answers(load_suite(f"table:{lines}?question=q&answer=a")) == ["no"]
    cells = parquet(tmp_path / "t.parquet", [{"q": "What?", "a": 3, "i": png("blue")}])
    suite = load_suite(f"table:{cells}?question=q&answer=a&image=i")
    assert facts(suite) == [("t-1", "vqa", "image", "What?", "")] and answers(suite) == ["3"]
    assert suite.cases[0].pictures()[0].getpixel((0, 0)) == BLUE


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "which column is 'answer', 'question'. expected table:FILE.question=COLUMN"),
        ("?question=q", "which column is 'answer'"),
        ("?question=q&answer=a&picture=i", "found 'picture', expected question, answer, image"),
        ("?question=q&answer=b", "lacks 'b'; found the columns 'a', 'q'"),
    ],
)
def test_a_table_whose_columns_are_not_named_is_refused(
    tmp_path: Path, query: str, message: str
) -> None:
    path = own(tmp_path / "t.jsonl", {"q": "Is it?", "a": "no"})
    with pytest.raises(MarsError, match=message):
        load_suite(f"table:{path}{query}")
