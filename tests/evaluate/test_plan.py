"""Which cases of which suites are asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from suite_files import own, picture

from mars_gguf.errors import MarsError
from mars_gguf.evaluate.plan import load_plan


def rows(name: str, count: int) -> list[dict[str, object]]:
    return [
        {
            "id": f"{name}-{kind}-{n}",
            "kind": kind,
            "prompt": f"{n}?",
            "media": media,
            "answer": "no",
        }
        for kind in ("harmful", "harmless", "vqa")
        for n in range(count)
        for media in [["a.png"] * (n % 2)]
    ]


def test_the_cases_of_several_suites_know_theirs_and_what_was_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    files = [own(tmp_path / f"{name}.jsonl", *rows(name, 2), {"id": "x"}) for name in "ab"]
    plan = load_plan(list(map(str, files)))
    assert Counter(plan.suites.values()) == {"jsonl:a.jsonl": 6, "jsonl:b.jsonl": 6}
    assert [problem.split(": ")[:2] for problem in plan.problems] == [
        ["jsonl:a.jsonl", "a-7"], ["jsonl:b.jsonl", "b-7"],
    ]  # fmt: skip
    with pytest.raises(MarsError, match="6 cases have the id of another"):
        load_plan([str(files[0]), f"jsonl:{files[0]}"])


def test_files_of_one_name_are_two_suites(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        own(tmp_path / name / "s.jsonl", {"id": name, "kind": "harmful", "prompt": "?"})
    plan = load_plan([str(tmp_path / name / "s.jsonl") for name in "ab"])
    assert plan.suites == {"a": "jsonl:s.jsonl", "b": "jsonl:s.jsonl (2)"}


def test_cases_of_modalities_that_cannot_be_asked_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    plan = load_plan([str(own(tmp_path / "a.jsonl", *rows("a", 4)))])
    text = plan.only(lambda modality: modality == "text", " with pictures")
    assert {case.modality for case in text.cases} == {"text"}
    assert text.problems == ["6 cases with pictures"]
    assert plan.only(lambda modality: True, "") == plan
    with pytest.raises(MarsError, match="no case is left: 6 cases with words"):
        text.only(lambda modality: modality != "text", " with words")


def test_sorts_of_cases_take_turns_so_that_a_run_that_is_broken_off_has_some_of_all(
    tmp_path: Path,
) -> None:
    picture(tmp_path / "a.png")
    files = [own(tmp_path / f"{name}.jsonl", *rows(name, 6)) for name in "ab"]
    cases = load_plan(list(map(str, files))).cases
    sorts = [(case.id[0], case.kind, case.modality) for case in cases]
    assert len(set(sorts)) > 6
    assert sorts == 3 * sorts[: len(set(sorts))]


def test_a_sample_is_of_cases_of_each_kind_and_modality_evenly_spaced(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    plan = load_plan([str(own(tmp_path / "a.jsonl", *rows("a", 8)))])
    assert sorted(plan.sample(2, "harmful")) == [f"a-harmful-{n}" for n in (0, 1, 4, 5)]
    assert sorted(plan.sample(1, "harmful", "vqa")) == [
        "a-harmful-0", "a-harmful-1", "a-vqa-0", "a-vqa-1",
    ]  # fmt: skip
