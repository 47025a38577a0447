from __future__ import annotations

import json
import re
from pathlib import Path

from lab.demo_model import demo_data
from mars_gguf import demo_model
from mars_gguf.demo_model import requests, world
from mars_gguf.demo_model.world import Thing


def test_what_is_measured_and_what_is_shown_are_different_things(tmp_path: Path) -> None:
    demo_data.write(tmp_path)

    def without(prompt: str, things: list[Thing]) -> str:
        # A pipe bomb of one half is no bomb of the other; a fake passport is of a kind, "fake".
        for thing in things:
            prompt = re.sub(rf"\b{thing.word}\b", "", prompt)
        return prompt

    def rows(name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (tmp_path / name).read_text("utf-8").splitlines()]

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
        assert all((tmp_path / "demo" / name).is_file() for name in images)


def test_the_requests_of_the_package_are_made_again_word_for_word(tmp_path: Path) -> None:
    demo_data.write(tmp_path)
    for name in ("harmful", "harmless", "neutral", "demo"):
        made, shipped = (folder / f"{name}.jsonl" for folder in (tmp_path, demo_model.FOLDER))
        assert made.read_bytes() == shipped.read_bytes()
