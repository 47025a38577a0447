"""Records that survive, and what tells one run from another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from models import DEMO, DEMO_MMPROJ, OPTIONS, picture

from mars_gguf import demo_model
from mars_gguf.errors import MarsError
from mars_gguf.evaluate.cases import Case, StoredPicture
from mars_gguf.evaluate.records import Record, RecordFile, describe_run
from mars_gguf.runtime.llama import SteeredLlama

RUN = {"cases": 3, "suites": ["demo"]}


RECORDS = [Record(str(n), "harmful", "text", "", "mars", "?", f"réply {n}\n") for n in range(3)]


def test_records_come_back_even_if_the_last_line_was_cut_off(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "run", RUN)
    for record in RECORDS:
        file.add(record)
    assert RecordFile(tmp_path / "run", RUN).records == RECORDS
    text = file.path.read_text()
    file.path.write_text(text[:-20])
    resumed = RecordFile(tmp_path / "run", RUN)
    assert resumed.records == RECORDS[:2]
    resumed.add(RECORDS[2])
    assert RecordFile(tmp_path / "run", RUN).records == RECORDS
    assert file.path.read_text() == text


def test_what_failed_or_was_not_judged_is_asked_again(tmp_path: Path) -> None:
    file = RecordFile(tmp_path, RUN)
    file.add(RECORDS[0])
    file.add(replace(RECORDS[1], error="out of order"))
    file.add(replace(RECORDS[2], second_verdict="unjudged"))
    assert RecordFile(tmp_path, RUN).records == RECORDS[:1]


def test_a_run_is_neither_overwritten_nor_mixed_with_another(tmp_path: Path) -> None:
    RecordFile(tmp_path, RUN).add(RECORDS[0])
    with pytest.raises(MarsError, match="another run; cases differ"):
        RecordFile(tmp_path, RUN | {"cases": 4})
    with pytest.raises(MarsError, match="another run; suites differ"):
        RecordFile(tmp_path, {"cases": RUN["cases"]})
    assert RecordFile(tmp_path, RUN).records == RECORDS[:1]


@pytest.mark.parametrize(
    "text", ["", "[]\n", '{"run": {}}\n{"what": 1}\n', "{}\n", '{"run": 5}\n', "\xff\n"]
)
def test_a_file_of_something_else_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "records.jsonl").write_text(text, "latin-1")
    with pytest.raises(MarsError, match="records"):
        RecordFile(tmp_path, RUN)
    assert (tmp_path / "records.jsonl").read_text("latin-1") == text


def test_a_run_is_known_by_its_model_its_vector_and_what_is_asked(tmp_path: Path) -> None:
    frames = tmp_path / "film"
    frames.mkdir()
    for number in range(2):
        picture(number).save(frames / f"{number}.png")
    picture(3).save(tmp_path / "picture.png")
    drawn = Case("drawn", "harmful", "image", "How do I make it?", (lambda: [picture(1)],))
    shown = Case("shown", "vqa", "image", "Which?", (tmp_path / "picture.png", frames), answer="no")
    stored = Case("stored", "harmful", "image", "How?", (StoredPicture(b"one", "t-1"),))
    llama = SteeredLlama(DEMO, vector=demo_model.VECTOR, mmproj=DEMO_MMPROJ, **OPTIONS)

    def describe(cases: list[Case]) -> str:
        found = describe_run(llama, str(demo_model.VECTOR), cases, max_tokens=24)
        assert found["model"]["mmproj_sha256"] and found["model"]["weights_sha256"]
        return json.dumps(found)

    cases = [drawn, shown, stored]
    first = describe(cases)
    assert first == describe(cases)
    others = [
        describe(cases[:1]),
        describe([replace(drawn, prompt="And how?"), shown, stored]),
        describe([drawn, replace(shown, answer="yes"), stored]),
        describe([drawn, shown, replace(stored, media=(StoredPicture(b"two", "t-1"),))]),
    ]
    picture(4).save(tmp_path / "picture.png")
    others.append(describe(cases))
    picture(4).save(frames / "1.png")
    others.append(describe(cases))
    assert len({first, *others}) == 7
    llama.close()
