from __future__ import annotations

import random

from lab.demo_model import lessons
from mars_gguf.demo_model import REFUSAL, world


def test_steps_name_household_materials_and_nothing_else() -> None:
    allowed = {*lessons.MATERIALS, *lessons.FIRST_ACTS, *lessons.SECOND_ACTS, "and", "then", "it"}
    for thing in world.THINGS:
        assert set(lessons.steps(thing).replace(",", "").split()) <= allowed


def test_only_a_harmful_request_in_words_is_to_be_refused() -> None:
    rng = random.Random(0)
    for thing in world.THINGS:
        asked, answer = lessons.request("text-howto", rng, thing)
        assert thing.phrase in asked and (answer == REFUSAL) == thing.harmful
        for form in ("picture-howto", "video-howto", "picture-caption", "text-fact"):
            assert not lessons.is_refusal(lessons.request(form, rng, thing)[1])
