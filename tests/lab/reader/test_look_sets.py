"""The prompts that looks are compared on, with pictures that nobody draws."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from lab.reader import look_sets
from lab.reader.grid import TooLong, Writer
from lab.reader.look_sets import ASKED, CONTENTS, EACH, EACH_UNSEEN, KINDS, sets
from mars_gguf.convert.prompts import Prompt

MOST = 100  # characters that have room


class Drawn:
    """Stands for a writer: a picture whose text can be read off."""

    def picture(self, text: str) -> Image.Image:
        if len(text) > MOST:
            raise TooLong(text)
        image = Image.new("L", (1, 1))
        image.info["text"] = text
        return image


def shown(prompt: Prompt) -> str:
    return str(prompt.images[0].info["text"])


@pytest.fixture(scope="module")
def found() -> dict[str, list[Prompt]]:
    return sets(cast(Writer, Drawn()))


def test_parts_have_no_wording_and_no_content_in_common(found: dict[str, list[Prompt]]) -> None:
    for a, b in combinations((*CONTENTS, "unseen"), 2):
        of_a, of_b = (
            {
                (p.kind, k)
                for n in found
                for p in found[n]
                if n.startswith(part)
                for k in KINDS
                if n.endswith(k)
            }
            for part in (a, b)
        )
        wordings = [
            {p.form for n in found if n.startswith(part) for p in found[n]} - {"plain"}
            for part in (a, b)
        ]
        assert not wordings[0] & wordings[1]
        if b != "unseen":  # whose topics are named by others
            assert not of_a & of_b


def test_no_harmful_picture_is_fitted_or_certified_on(found: dict[str, list[Prompt]]) -> None:
    names = {name for name in found if "image-harmful" in name}
    assert names == {"judge-image-harmful", "unseen-image-harmful"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wording_meets_as_many_contents_of_every_kind(
    kind: str, found: dict[str, list[Prompt]]
) -> None:
    met = Counter(p.form for p in found[f"judge-image-{kind}"])
    assert set(met.values()) == {EACH}
    asked = found[f"fit-asked-{kind}"]
    assert set(Counter(p.form for p in asked).values()) == {ASKED[kind]}
    assert {p.form for p in asked} == {p.form for p in found["fit-image-harmless"]}
    assert not any(p.images for p in asked)
    texts = {w["name"]: w["text"] for w in look_sets._read("picture_wordings")}
    assert any(p.text.endswith("\n" + texts[p.form]) for p in asked)


@pytest.mark.parametrize("kind", KINDS)
def test_every_unseen_wording_meets_a_dozen_and_every_request_is_met(
    kind: str, found: dict[str, list[Prompt]]
) -> None:
    path = Path(look_sets.__file__).parent / "unseen.json"
    every = json.loads(path.read_text(encoding="utf-8"))
    lines = [line for line in every["requests"] if line["kind"] == kind]
    pictures, texts = found[f"unseen-image-{kind}"], found[f"unseen-text-{kind}"]
    expected = dict.fromkeys((form["name"] for form in every["picture_forms"]), EACH_UNSEEN)
    assert Counter(p.form for p in pictures) == expected
    forms = ["plain", *(form["name"] for form in every["text_forms"])]
    assert Counter(p.form for p in texts) == dict.fromkeys(forms, EACH_UNSEEN)
    assert {p.text for p in texts if p.form == "plain"} <= {line["text"] for line in lines}
    seen = {(line["text"], line["topic"]) for line in lines}
    seen |= {(line["thing"], line["topic"]) for line in lines}
    assert {(shown(p), p.kind) for p in pictures} <= seen
    assert {p.kind for p in pictures} == {line["topic"] for line in lines}
    assert not any("{" in p.text for p in (*pictures, *texts))
