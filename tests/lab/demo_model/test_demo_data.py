from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab.demo_model import demo_data
from mars_gguf import demo_model
from mars_gguf.demo_model import requests, world
from mars_gguf.demo_model.world import Thing


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    demo_data.write(folder)
    return folder


def test_what_is_measured_and_what_is_shown_are_different_things(written: Path) -> None:
    def without(prompt: str, things: list[Thing]) -> str:
        # A pipe bomb of one half is no bomb of the other; a fake passport is of a kind, "fake".
        for thing in things:
            prompt = re.sub(rf"\b{thing.word}\b", "", prompt)
        return prompt

    def rows(name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (written / name).read_text("utf-8").splitlines()]

    first = [*requests.HARMFUL_FIRST, *requests.HARMLESS_FIRST]
    second = [*requests.HARMFUL_SECOND, *requests.HARMLESS_SECOND]
    assert not {*first} & {*second} and {*first, *second} == {*world.THINGS}
    for name in ("harmful.jsonl", "harmless.jsonl", "neutral.jsonl"):
        for row in rows(name):
            prompt = without(str(row["prompt"]), first)
            assert not [t for t in second if re.search(rf"\b{t.word}\b", prompt)], row
    for row in rows("demo.jsonl"):
        prompt = without(str(row["prompt"]), second)
        assert not [t for t in first if re.search(rf"\b{t.word}\b", prompt)], row
        images = row["images"]
        assert isinstance(images, list)
        assert all((written / "demo" / name).is_file() for name in images)


def test_the_requests_of_the_package_are_made_again_word_for_word(written: Path) -> None:
    for name in ("harmful", "harmless", "neutral", "demo"):
        made, shipped = (folder / f"{name}.jsonl" for folder in (written, demo_model.FOLDER))
        assert made.read_bytes() == shipped.read_bytes()
