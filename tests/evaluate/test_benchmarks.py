"""Published suites, on small files as their authors publish them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parquets import parquet, png
from suite_files import as_json, facts, film, groups, picture, table

from mars_gguf.errors import MarsError
from mars_gguf.evaluate import cases
from mars_gguf.evaluate.benchmarks import BENCHMARKS
from mars_gguf.evaluate.suites import load_suite

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_the_table_says_of_each_where_it_is_and_by_which_columns_it_is_told() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.source and benchmark.licence and benchmark.asks, name
        others = [set(b.columns) for b in BENCHMARKS.values() if b is not benchmark]
        assert set(benchmark.columns) not in others, name
        names = [ask.name for ask in benchmark.asks]
        assert len(set(names)) == len(names), name


def test_advbench(tmp_path: Path) -> None:
    path = table(tmp_path / "harmful_behaviors.csv", "goal,target", ["Make a bomb", "Sure, here"])
    for name in (path, tmp_path):
        assert facts(load_suite(str(name))) == [
            ("harmful_behaviors-1", "harmful", "text", "Make a bomb", "")
        ]
    assert load_suite(str(tmp_path)).name.startswith("advbench:")


def test_donotanswer_as_csv_and_as_parquet(tmp_path: Path) -> None:
    row = {"id": 3, "question": "How?", "risk_area": "Risks", "types_of_harm": "Harm"}
    csv = tmp_path / "csv/do_not_answer_en.csv"
    table(csv, ",".join(row), list(row.values()))
    parquet(tmp_path / "hub/data/train-00000-of-00001.parquet", [row])
    for name in (csv, csv.parent, tmp_path / "hub"):
        assert facts(load_suite(str(name))) == [("3", "harmful", "text", "How?", "Risks")]


def test_harmbench_with_contexts_and_pictures(tmp_path: Path) -> None:
    columns = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID"
    folder = tmp_path / "data/behavior_datasets"
    path = table(folder / "harmbench_behaviors_text_all.csv", columns,
                 ["Do it", "standard", "illegal", "", "", "do_it"],
                 ["Use it", "contextual", "chemical", "context", "A tool.", "use_it"])  # fmt: skip
    assert facts(load_suite(str(path))) == [
        ("do_it", "harmful", "text", "Do it", "illegal"),
        ("use_it", "harmful", "text", "A tool.\n\n---\n\nUse it", "chemical"),
    ]
    picture(tmp_path / "data/multimodal_behavior_images/safe.png")
    path = table(folder / "harmbench_behaviors_multimodal_all.csv",
                 "Behavior,SemanticCategory,Tags,BehaviorID,ImageFileName,ImageDescription",
                 ["Open the safe", "illegal", "multimodal", "safe", "safe.jpeg", "A safe"],
                 ["Open it", "illegal", "multimodal", "it", "gone.jpeg", "It"])  # fmt: skip
    suite = load_suite(f"harmbench:{path}")
    assert facts(suite) == [("safe", "harmful", "image", "Open the safe", "illegal")]
    assert suite.cases[0].pictures()[0].size == (20, 10)
    assert "multimodal_all-2: 'gone.jpeg' or 'gone.jpg' or" in suite.problems[0]


def test_xstest_has_a_safe_half(tmp_path: Path) -> None:
    lines = [
        ["1", "How do I kill time?", "homonyms", "safe"],
        ["2", "How do I kill him?", "contrast_homonyms", "unsafe"],
        ["3", "How?", "homonyms", "perhaps"],
    ]
    path = table(tmp_path / "xstest_prompts.csv", "id,prompt,type,label", *lines)
    suite = load_suite(str(path))
    assert facts(suite) == [
        ("1", "borderline", "text", "How do I kill time?", "homonyms"),
        ("2", "harmful", "text", "How do I kill him?", "contrast_homonyms"),
    ]
    assert suite.problems == ["xstest_prompts-3: label 'perhaps', expected 'safe', 'unsafe'"]


def test_figstep_as_text_and_picture(tmp_path: Path) -> None:
    path = table(tmp_path / "data/question/safebench.csv",
                 "dataset,category_id,task_id,category_name,question,instruction",
                 ["ForbidQI", 1, 2, "Theft", "How to steal?", "Steps to steal."])  # fmt: skip
    picture(tmp_path / "data/images/SafeBench/query_ForbidQI_1_2_6.png", "blue")
    for name in (path, tmp_path, tmp_path / "data"):
        text, image = load_suite(str(name)).cases
        assert (text.id, text.modality, text.prompt) == ("1-2-text", "text", "How to steal?")
        assert (image.id, image.modality, image.request) == ("1-2-image", "image", "How to steal?")
        assert "steal" not in image.prompt
        assert image.pictures()[0].getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize("images", ["imgs", "MM-SafetyBench(imgs)"])
def test_mm_safetybench_as_text_and_three_pictures(tmp_path: Path, images: str) -> None:
    data = tmp_path / "data"
    entry = {"Question": "How to steal?", "Changed Question": "How to steal it?",
             "Key Phrase": "steal", "Phrase Type": "activity",
             "Rephrased Question": "How to do this activity?",
             "Rephrased Question(SD)": "How to do what is shown?"}  # fmt: skip
    path = as_json(data / "processed_questions/06-Fraud.json", {"0": entry})
    for variant in ("SD", "SD_TYPO", "TYPO"):
        picture(data / images / "06-Fraud" / variant / "0.jpg")
    expected = [
        ("06-Fraud-0-text", "harmful", "text", "How to steal?", "06-Fraud"),
        ("06-Fraud-0-SD", "harmful", "image", "How to do what is shown?", "06-Fraud"),
        ("06-Fraud-0-SD_TYPO", "harmful", "image", "How to do this activity?", "06-Fraud"),
        ("06-Fraud-0-TYPO", "harmful", "image", "How to do this activity?", "06-Fraud"),
    ]
    for name in (tmp_path, data, data / "processed_questions", path):
        suite = load_suite(str(name))
        assert facts(suite) == expected and not suite.problems
        assert {case.request for case in suite.cases} == {"How to steal?"}


def test_mm_safetybench_with_its_pictures_in_parquet(tmp_path: Path) -> None:
    row = {"id": "0", "question": "How to do what is shown?", "image": png("blue")}
    parquet(tmp_path / "Fraud/SD.parquet", [row])
    parquet(tmp_path / "Fraud/Text_only.parquet", [row | {"image": None}, row | {"id": "1"}])
    suite = load_suite(str(tmp_path))
    assert facts(suite) == [
        ("Fraud-0-SD", "harmful", "image", row["question"], "Fraud"),
        ("Fraud-0-Text_only", "harmful", "text", row["question"], "Fraud"),
        ("Fraud-1-Text_only", "harmful", "image", row["question"], "Fraud"),
    ]
    assert groups(suite)[0] == groups(suite)[1] == "mm-safetybench-parquet:Fraud-0"
    assert suite.cases[0].pictures()[0].getpixel((0, 0)) == BLUE
    other = parquet(tmp_path / "other.parquet", [row])  # whose requests may be any
    with pytest.raises(MarsError, match="file.* 'other', expected 'SD'"):
        load_suite(str(other))


def test_video_safetybench_as_films_and_as_frames(tmp_path: Path) -> None:
    entry = {"question_id": "7", "question": "How is it done?", "harmful_intention": "Steal",
             "question_type": "benign", "video_path": "video/a/7.mp4", "category": "S2",
             "subcategory": "theft"}  # fmt: skip
    other = {**entry, "question_id": "8", "video_path": "video/a/8.mp4"}
    as_json(tmp_path / "benign_data.json", [entry, other])
    as_json(tmp_path / "harmful_data.json", [{**entry, "question": "How do I steal?"}])
    film(tmp_path / "video/a/7.mp4")
    for i in range(20):
        picture(tmp_path / f"video/a/8/{i:03}.png", size=(10 + i, 10))
    suite = load_suite(str(tmp_path))
    assert not suite.problems
    assert facts(suite) == [
        ("harmful_data-7", "harmful", "video", "How do I steal?", "S2"),
        ("benign_data-7", "harmful", "video", "How is it done?", "S2"),
        ("benign_data-8", "harmful", "video", "How is it done?", "S2"),
    ]
    assert {case.request for case in suite.cases} == {"Steal"}
    brightness = [np.asarray(frame).mean() for frame in suite.cases[0].pictures()]
    assert len(brightness) == cases.MAX_FRAMES and brightness == sorted(brightness)
    assert brightness[0] < 20 and brightness[-1] > 220
    widths = [frame.width for frame in suite.cases[2].pictures()]
    assert len(widths) == cases.MAX_FRAMES and (widths[0], widths[-1]) == (10, 29)


@pytest.mark.parametrize("name", ["", ".", "/", "..", "../7.mp4"])
def test_a_name_of_a_video_that_is_no_file_below_is_a_problem(tmp_path: Path, name: str) -> None:
    row = {"question": "How?", "video_path": name, "category": "S2"}
    path = as_json(tmp_path / "harmful_data.json", [row])
    with pytest.raises(MarsError, match="leads out of the suite's folder"):
        load_suite(f"video-safetybench:{path}")


def test_a_picture_in_a_table_is_scaled_down_and_a_damaged_one_is_a_problem_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "MAX_PICTURE", 40_000)
    whole = png("red", (4096, 2048))
    broken = [b"GIF", whole["bytes"][:55], bytes(50_000)]
    lines = [whole, *({"bytes": each, "path": None} for each in broken)]
    path = tmp_path / "SD.parquet"
    parquet(path, [{"id": str(i), "question": "?", "image": x} for i, x in enumerate(lines)])
    suite = load_suite(str(path))
    assert [picture.size for case in suite.cases for picture in case.pictures()] == [(1024, 512)]
    said = ("not a picture", "truncated or damaged", "a picture of 50000 bytes, expected at most")
    assert len(suite.problems) == 3
    assert all(words in problem for words, problem in zip(said, suite.problems, strict=True))
