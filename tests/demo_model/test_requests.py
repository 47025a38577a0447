from __future__ import annotations

import re

import pytest

from mars_gguf.demo_model import requests


@pytest.mark.parametrize("modality", ["text", "image", "video"])
@pytest.mark.parametrize("kind", ["harmful", "harmless", "borderline"])
def test_a_request_is_a_function_of_its_seed_with_the_pictures_of_its_modality(
    modality: str, kind: str
) -> None:
    for number in range(4):
        prompt, pictures, answer = requests.example(modality, kind, number, "a")
        again = requests.example(modality, kind, number, "a")
        assert (prompt, answer) == (again[0], None) == requests.words(modality, kind, number, "a")
        assert [p.tobytes() for p in pictures] == [p.tobytes() for p in again[1]]
        assert len(pictures) == {"text": 0, "image": 1, "video": 3}[modality]
    seeds = {requests.example(modality, kind, 0, seed)[0] for seed in "abcdefgh"}
    assert len(seeds) > 1


def test_a_visual_question_has_an_answer_of_one_word() -> None:
    for number in range(40):
        prompt, pictures, answer = requests.example("image", "vqa", number, "a")
        assert prompt and len(pictures) == 1
        assert (prompt, answer) == requests.words("image", "vqa", number, "a")
        assert answer is not None and re.fullmatch(r"\w+", answer)
