"""Files of a benchmark, and the media that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_files import as_json, own, picture

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.benchmark import Benchmark
from mars_gguf.evaluate.cases import Case
from mars_gguf.evaluate.suites import load_suite


def cases(benchmark: Benchmark, path: Path) -> tuple[list[Case], list[str]]:
    found = list(benchmark.cases(path))
    return [c for c in found if isinstance(c, Case)], [c for c in found if isinstance(c, str)]


def test_columns_called_as_in_our_own_format_need_not_be_said(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "How?", "category": "c", "group": "g", "intent": "Why?"}
    [case], _ = cases(Benchmark("b", ("prompt",)), own(tmp_path / "t.jsonl", row))
    assert vars(case) == vars(
        Case("a", "harmful", "text", "How?", category="c", group="g", intent="Why?")
    )


def test_an_id_has_the_part_and_the_numbers_or_the_place_of_a_row(tmp_path: Path) -> None:
    benchmark = Benchmark("b", ("q",), "q", kind={"bad": "harmful", "good": "harmless"},
                          number=("n", "m"))  # fmt: skip
    path = own(tmp_path / "good.jsonl", {"q": "?", "n": 1, "m": 2}, {"q": "!", "m": 2}, {"q": ""})
    found, problems = cases(benchmark, path)
    assert [(case.id, case.kind) for case in found] == [
        ("good-1-2", "harmless"),
        ("good-good-2-2", "harmless"),
    ]
    assert problems == ["good-3: empty prompt"]
    with pytest.raises(MarsError, match="which part of the benchmark"):
        cases(benchmark, path.rename(tmp_path / "bad-good.jsonl"))


def test_a_row_may_hold_several_requests_each_with_its_picture(tmp_path: Path) -> None:
    picture(tmp_path / "shown/x.png")
    benchmark = Benchmark(
        "b", ("prompt",), number=("way",), media=("image", "shown"),
        requests=lambda row: [row | {"way": "1", "image": "x.png"}, row | {"image": "y.png"}],
    )  # fmt: skip
    [case], [problem] = cases(benchmark, own(tmp_path / "t.jsonl", {"prompt": "?"}))
    assert (case.id, case.modality, case.media) == ("1", "image", (tmp_path / "shown/x.png",))
    assert problem.startswith("t-1: 'y.png' or 'shown/y.png': no such file")


def test_a_question_without_an_answer_is_a_problem(tmp_path: Path) -> None:
    benchmark = Benchmark("b", ("prompt",), kind="vqa", answer="answer")
    _, problems = cases(benchmark, own(tmp_path / "t.jsonl", {"prompt": "?"}))
    assert problems == ["t-1: kind 'vqa' without an answer"]


@pytest.mark.parametrize("name", ["", ".", "/", "..", "../7.mp4"])
def test_a_name_of_a_video_that_is_no_file_below_is_a_problem(tmp_path: Path, name: str) -> None:
    row = {"question": "How?", "video_path": name, "category": "S2"}
    path = as_json(tmp_path / "harmful_data.json", [row])
    with pytest.raises(MarsError, match="leads out of the suite's folder"):
        load_suite(f"video-safetybench:{path}")
