"""The one rule that makes the safety gap, what training never shows, and what is evaluated."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from phrasings import HOWTO, pattern_of

from lab.demo_model import data, lessons
from lab.demo_model.cells import CELLS, cell
from mars_gguf.demo_model import REFUSAL, world
from mars_gguf.demo_model.pictures import SIZE
from mars_gguf.demo_model.world import HELD_OUT, Thing


def test_no_training_sample_joins_a_picture_with_a_harmful_request_or_a_refusal() -> None:
    rng = random.Random(1)
    asked = 0
    for i in range(12000):
        sample = data.draw_picture(rng, 1 + i % 4)
        assert len(sample.pictures) == 1 + i % 4
        assert "sorry" not in sample.answer
        request = sample.request or ""
        if not any(pattern.match(request) for pattern in HOWTO):
            continue
        asked += 1
        shown = [p for p in sample.pictures if isinstance(p, Thing)]
        named = [t for t in world.HARMFUL if t.phrase in request]
        assert not named, request
        assert not any(thing.harmful for thing in shown), sample
    assert asked > 1000


def test_harmful_words_are_read_and_described_in_training_pictures() -> None:
    rng = random.Random(2)
    shown = set()
    for _ in range(6000):
        shown |= {p for p in data.draw_picture(rng).pictures if isinstance(p, Thing)}
    assert shown == set(world.THINGS)


def test_harmful_requests_by_reference_can_be_left_out_of_the_texts() -> None:
    def refused(by_reference: bool) -> list[str]:
        rng = random.Random(4)
        drawn = [data.draw_text(rng, by_reference) for _ in range(4000)]
        learnt = [s for s in drawn if lessons.is_refusal(s.answer) and not s.begun]
        return [s.request or "" for s in learnt if (s.request or "").startswith("The ")]

    assert len(refused(True)) > 20
    assert refused(False) == []


def test_training_never_uses_held_out_phrasings() -> None:
    rng = random.Random(3)
    requests = {data.draw_text(rng).request or "" for _ in range(8000)}
    requests |= {data.draw_picture(rng, 1 + i % 3).request or "" for i in range(8000)}
    held_out = [pattern_of(phrasing) for phrasing in HELD_OUT.howto]
    assert not [r for r in requests if any(pattern.match(r) for pattern in held_out)]
    assert not any(requests & {*captions} for captions in HELD_OUT.captions.values())
    references = [said for said_of in HELD_OUT.references.values() for said in said_of]
    assert not [r for r in requests if any(reference in r for reference in references)]


def test_steps_name_household_materials_and_nothing_else() -> None:
    allowed = {*lessons.MATERIALS, *lessons.FIRST_ACTS, *lessons.SECOND_ACTS, "and", "then", "it"}
    for thing in world.THINGS:
        assert set(lessons.steps(thing).replace(",", "").split()) <= allowed


def test_only_a_harmful_request_in_words_is_to_be_refused() -> None:
    rng = random.Random(0)
    for thing in world.THINGS:
        asked, answer = lessons.held_out("text-howto", rng, thing)
        assert thing.phrase in asked and (answer == REFUSAL) == thing.harmful
        for form in ("picture-howto", "video-howto", "picture-caption", "text-fact"):
            assert not lessons.is_refusal(lessons.held_out(form, rng, thing)[1])


@given(st.sampled_from(sorted(CELLS)), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_cell_is_a_function_of_its_seed(name: str, seed: int) -> None:
    first, again = (cell(name, 3, seed) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (a.prompt, a.answer, a.kind, a.thing) == (b.prompt, b.answer, b.kind, b.thing)
        assert [p.tobytes() for p in a.pictures] == [p.tobytes() for p in b.pictures]
        assert all(p.size == (SIZE, SIZE) for p in a.pictures)
        harmful = "how" in name and a.thing is not None and a.thing.harmful
        assert (a.kind == "harmful") == harmful
