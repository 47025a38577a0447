"""Measurements of the shipped model, and of a real quantized chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama
from models import DEMO, DEMO_MMPROJ, OPTIONS, last_states, opening_at, steer, tapped, user
from PIL import Image
from toys import REFUSAL, Toy, toy_contrast

from mars_gguf import demo, demo_model
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.pipeline import Measurement, measure_vector
from mars_gguf.convert.probes import paired_probes
from mars_gguf.convert.prompt_sets import PromptSets, renderable
from mars_gguf.convert.prompts import (
    ContrastPrompts,
    Preamble,
    Prompt,
    builtin_contrast,
    read_prompts,
)
from mars_gguf.convert.resuming import ResumeFile
from mars_gguf.convert.splits import CONTRAST_SHARES, Split, split, split_prompts
from mars_gguf.errors import MarsError
from mars_gguf.runtime.llama import SteeredLlama
from mars_gguf.statistics import largest_count
from mars_gguf.steering import coordinate
from mars_gguf.vectors import read_vector, write_vector

SOURCE = {"backend": "llama.cpp"}


# A model of numpy alone --------------------------------------------------------------------------

CONTRAST = toy_contrast()
CONTEXTS = [Preamble(), *(Preamble(name, ({"role": "system", "content": name},)) for name in "ab")]
MEDIA = {
    "image": Split(
        *(
            [
                Prompt(f"shown {100 * k + i}", (Image.new("RGB", (1, 1)),), "ab"[i % 2], "drawn")
                for i in range(60)
            ]
            for k in range(3)
        )
    )
}
PLIABLE = dict.fromkeys((2, 3), 0.0)


def converted(toy: Toy, **options: Any) -> Measurement:
    """A conversion of the toy, which is quiet."""
    given: dict[str, Any] = {"media": MEDIA, "calibration": Calibration()} | options
    sets = renderable(toy, PromptSets(CONTRAST, given.pop("media"), CONTEXTS))
    return measure_vector(toy, sets, source={"backend": "toy"}, progress=False, **given)


@pytest.fixture(scope="module")
def plain_toy() -> Toy:
    return Toy({"harmful": 0.6, "odd": 0.2}, PLIABLE)


@pytest.fixture(scope="module")
def plain_toys_conversion(plain_toy: Toy) -> Measurement:
    return converted(plain_toy)


def parts_of(kind: int) -> list[Prompt]:
    """All that fits (0), selects (1) or certifies (2), but pictures."""
    splits = split_prompts(CONTRAST, {}, CONTEXTS, Calibration().seed)
    return [*splits.harmful[kind], *splits.neutral["text"][kind]]


def test_text_and_pictures_of_a_toy_are_told_from_what_is_harmful(
    plain_toys_conversion: Measurement,
) -> None:
    """Its media only add a shift, of 7 along one axis."""
    made = plain_toys_conversion
    g, layer = made.vector.geometry, made.vector.layer
    assert layer in PLIABLE
    np.testing.assert_allclose(g.direction, 1 + layer, atol=0.3)
    np.testing.assert_allclose(g.shifts["image"], [7, 0, 0, 0], atol=0.4)
    assert not made.warnings
    assert (made.certificate.caught.k, made.certificate.caught.n) == (60, 60)
    for row in made.certificate.neutral:
        if not row.group:
            budget = float(str(made.vector.calibration[f"over_refusal.{row.modality}"]))
            assert row.bound <= budget == (0.1 if row.modality == "text" else 0.05)
            most = largest_count(row.n, budget)
            # What is harmful lies far off, and the threshold of text half way.
            assert row.k <= (0 if row.modality == "text" else most)


def test_the_effect_is_where_the_model_gives_in_and_nowhere_else(
    plain_toys_conversion: Measurement,
) -> None:
    scores = plain_toys_conversion.scores
    finalists = scores.finalists()
    assert set(PLIABLE) <= set(finalists)
    for layer, effect in enumerate(scores.effect):
        assert effect == (layer in PLIABLE) if layer in finalists else np.isnan(effect)
    for prompt, reply in plain_toys_conversion.examples:
        assert prompt.text.startswith("harmful")
        assert reply.text == REFUSAL


def moved(prompts: list[Prompt], by: float) -> dict[str, float]:
    return {p.text: by for p in prompts}


def test_what_is_certified_chooses_nothing(
    plain_toy: Toy, plain_toys_conversion: Measurement
) -> None:
    """Elsewhere lie all prompts of the part that certifies: thresholds and spreads alone change."""
    somewhere = {p.text: i % 5 - 3.0 for i, p in enumerate(parts_of(2))}
    pictures = moved(MEDIA["image"].certify, 0.5)
    other = converted(replace(plain_toy, moved=somewhere | pictures))
    a, b = plain_toys_conversion.vector, other.vector
    assert a.layer == b.layer
    assert a.geometry.trust_limit == b.geometry.trust_limit
    for name in ("safe", "unsafe", "readout"):
        np.testing.assert_array_equal(getattr(a.geometry, name), getattr(b.geometry, name))
    for m, shift in a.geometry.shifts.items():
        np.testing.assert_array_equal(shift, b.geometry.shifts[m])
        assert a.geometry.thresholds[m] != b.geometry.thresholds[m]
    np.testing.assert_array_equal(plain_toys_conversion.scores.total, other.scores.total)
    assert plain_toys_conversion.examples == other.examples


def test_what_is_selected_with_neither_fits_nor_certifies(
    plain_toy: Toy, plain_toys_conversion: Measurement
) -> None:
    """Even at the same block, from which the toy cannot choose another; but how far harmful text
    lies off, where it leaves room, is taken from there."""
    one_block = Calibration(layers=(2, 2))
    neutral = [p for p in parts_of(1) if not p.text.startswith("harmful")]
    somewhere = moved(neutral, 0.3) | moved(MEDIA["image"].select, -0.2)
    made, other = (
        converted(toy, calibration=one_block)
        for toy in (plain_toy, replace(plain_toy, moved=somewhere))
    )
    assert same_geometry(made, other)
    assert made.certificate == other.certificate
    assert made.scores.thresholds["text"][2] != other.scores.thresholds["text"][2]


def same_geometry(one: Measurement, other: Measurement) -> bool:
    a, b = one.vector.geometry, other.vector.geometry
    arrays = zip((a.safe, a.unsafe, a.readout), (b.safe, b.unsafe, b.readout), strict=True)
    return (
        all(np.array_equal(x, y) for x, y in arrays)
        and all(np.array_equal(shift, b.shifts[m]) for m, shift in a.shifts.items())
        and (a.thresholds, a.spreads, a.trust_limit) == (b.thresholds, b.spreads, b.trust_limit)
    )


def test_prompts_that_the_model_refuses_by_itself_never_set_a_threshold(
    plain_toy: Toy, plain_toys_conversion: Measurement
) -> None:
    """Far out lies what it refuses, of what selects and certifies: nothing changes but how it
    looks before re-centering."""
    held_out = [p for k in (1, 2) for p in parts_of(k) if p.text.startswith("odd")]
    refused = [p for p in held_out if plain_toy.refused(p)]
    assert 8 <= len(refused) <= len(held_out) / 3
    other = converted(replace(plain_toy, moved=moved(refused, 50.0)))
    assert same_geometry(plain_toys_conversion, other)
    assert plain_toys_conversion.certificate == other.certificate
    answered = [p for p in held_out if p not in refused][:20]
    other = converted(replace(plain_toy, moved=moved(answered, 50.0)))
    assert not same_geometry(plain_toys_conversion, other)


def test_a_toy_that_gives_in_nowhere_is_said_to_be_steered_little() -> None:
    made = converted(Toy({"harmful": 0.6}), media={})
    scores = made.scores
    assert np.nanmax(scores.effect) == 0
    assert made.vector.layer == scores.ranked()[0]
    assert "forced steering turned only 0% of the replies" in " ".join(made.warnings)


def test_the_trust_limit_is_one_beyond_the_least_that_makes_the_toy_refuse() -> None:
    """At block 3 the centroids are 8 apart, and what harmful prompts it answers lie near 1."""
    limits = [
        converted(Toy({"harmful": 0.6}, {3: least}), media={}).vector.geometry.trust_limit
        for least in (1.0, 5.5, 12.0)
    ]
    assert limits == [2.0, 3.0, 4.0]


def test_where_it_answers_few_harmful_prompts_harmless_ones_of_every_modality_are_pushed() -> None:
    made = converted(Toy({"harmful": 1.0}, PLIABLE))
    assert made.vector.layer in PLIABLE
    assert all(prompt.text.startswith(("harmless", "odd")) for prompt, _ in made.examples)


def test_a_model_that_refuses_in_another_language_is_told_by_its_first_tokens() -> None:
    german = "Das kann ich leider nicht beantworten."
    made = converted(Toy({"harmful": 0.8}, PLIABLE, refusal=german, forced=german), media={})
    assert made.vector.layer in PLIABLE
    assert made.certificate.refused[0] == pytest.approx(0.8, abs=0.1)
    assert "told by their first tokens alone" in " ".join(made.warnings)


def test_contexts_that_the_template_does_not_write_are_left_out_with_a_note(
    plain_toy: Toy,
) -> None:
    """The toy's states of a prompt raise if it is asked after such a context."""
    shown = [replace(p, context=CONTEXTS[1 + i % 2]) for i, p in enumerate(MEDIA["image"].fit)]
    media = {"image": Split(shown, shown, shown)}
    made = converted(replace(plain_toy, unwritten=("a",)), media=media)
    (note,) = (w for w in made.warnings if "does not write" in w)
    assert note.endswith("which were not measured: a.")
    for m in ("text", "image"):
        groups = {row.group for row in made.certificate.neutral if row.modality == m}
        assert {"context: none", "context: b"} <= groups
        assert "context: a" not in groups
    none = converted(replace(plain_toy, unwritten=("a", "b")), media={})
    assert {row.group for row in none.certificate.neutral if "context" in row.group} == {
        "context: none"
    }


def test_a_system_prompt_that_the_template_does_not_write_is_refused(plain_toy: Toy) -> None:
    given = Preamble("none", ({"role": "system", "content": "Be kind."},))
    sets = PromptSets(CONTRAST, {}, [given])
    with pytest.raises(MarsError, match="--system-prompt: the chat template does not write it"):
        renderable(replace(plain_toy, unwritten=("none",)), sets)


def test_what_a_file_says_of_its_calibration_is_what_was_measured(
    plain_toys_conversion: Measurement,
) -> None:
    account, made = plain_toys_conversion.vector.calibration, plain_toys_conversion
    counts = [account[f"prompts.harmful.{part}"] for part in Split._fields]
    assert counts == [100, 40, 60]
    assert [account[f"prompts.neutral.image.{part}"] for part in Split._fields] == [60] * 3
    rows = {row.modality: row for row in made.certificate.neutral if not row.group}
    for m, row in rows.items():
        assert account[f"opened.{m}"] == str(row)
    assert account["opened.harmful_text"] == str(made.certificate.caught)
    assert account["score.reach"] == made.scores.reach[made.vector.layer]


def test_an_interrupted_conversion_goes_on_where_it_stopped_and_ends_alike(
    plain_toys_conversion: Measurement, tmp_path: Path
) -> None:
    logs: list[list[Prompt]] = []

    def attempt(at_most: int, job: str = "job") -> Measurement:
        toy = Toy({"harmful": 0.6, "odd": 0.2}, PLIABLE, at_most=at_most)
        logs.append(toy.log)
        return converted(toy, store=ResumeFile(tmp_path / "kept", job))

    for at_most in (0, 100, 300):
        with pytest.raises(KeyboardInterrupt):
            attempt(at_most)
    made = attempt(10**9)
    assert same_geometry(made, plain_toys_conversion)
    assert made.certificate == plain_toys_conversion.certificate
    assert made.coordinates.keys() == plain_toys_conversion.coordinates.keys()
    asked = [(p.text, p.modality, p.context.name) for log in logs for p in log]
    assert len(asked) == len(set(asked))
    assert len(logs[1]) == 100 and len(logs[2]) == 300
    attempt(10**9)
    attempt(10**9, "another job")
    assert (len(logs[-2]), len(logs[-1])) == (0, len(asked))


# The shipped model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversion() -> Measurement:
    return demo.convert_demo_model(threads=1, progress=False).measurement


@pytest.fixture
def extractor() -> Iterator[GgufExtractor]:
    extractor = GgufExtractor(DEMO, n_threads=1, n_ctx=2048)
    yield extractor
    extractor.close()


def measured(extractor: GgufExtractor, contrast: ContrastPrompts, **choices: Any) -> Measurement:
    """On text alone."""
    sets, calibration = PromptSets(contrast), Calibration(**choices)
    return measure_vector(extractor, sets, calibration, source=SOURCE, progress=False)


@pytest.fixture(scope="module")
def contrast() -> ContrastPrompts:
    folder = demo_model.FOLDER
    return ContrastPrompts(
        read_prompts(folder / "harmful.jsonl"), read_prompts(folder / "harmless.jsonl")
    )


def test_the_centroids_are_the_means_of_states_read_one_by_one(
    conversion: Measurement, contrast: ContrastPrompts
) -> None:
    vector = conversion.vector
    llama = tapped(DEMO, **OPTIONS)
    for prompts, centroid in (
        (contrast.harmless, vector.geometry.safe),
        (contrast.harmful, vector.geometry.unsafe),
    ):
        fitted = split(prompts, CONTRAST_SHARES, Calibration().seed)[0]
        states = [
            last_states(llama, llama.chunks(Prompt(text).messages)[0].tokens)[vector.layer]
            for text in fitted
        ]
        mean = np.mean(states, axis=0, dtype=np.float64)
        # One by one and in batches, quantized products round differently.
        distance = np.linalg.norm(mean - centroid) / vector.geometry.distance
        assert distance < 0.02
    llama.close()


def test_the_vector_in_the_package_is_what_a_conversion_measures(conversion: Measurement) -> None:
    """Bytes differ between processors; the block and the geometry do not."""
    shipped, made = read_vector(demo_model.VECTOR), conversion.vector
    assert shipped.layer == made.layer
    assert shipped.model == made.model
    a, b = shipped.geometry, made.geometry
    cosine = a.direction @ b.direction / (a.distance * b.distance)
    assert cosine > 0.999
    assert a.spreads == pytest.approx(b.spreads, rel=0.1)
    assert a.thresholds == pytest.approx(b.thresholds, abs=0.1)


def test_media_are_recentred_on_the_safe_centroid(conversion: Measurement) -> None:
    """The re-centred mean of other neutral pictures lies far nearer to safe than the gate, and the
    gate stays shut for them, too."""
    g, layer = conversion.vector.geometry, conversion.vector.layer
    probes = paired_probes(demo_model.FOLDER / "neutral.jsonl")
    extractor = GgufExtractor(DEMO, DEMO_MMPROJ, n_threads=1)
    for modality, split_ in probes.items():
        sessions = extractor.sessions(split_.select)
        states = np.concatenate([session.observe()[0][:, layer] for _, session in sessions])
        t = coordinate(states - g.shifts[modality], g.safe, g.readout)
        assert abs(t.mean()) < 0.5 * g.thresholds[modality]
        assert (t > g.thresholds[modality]).mean() <= 5 * demo.OVER_REFUSAL
    extractor.close()


@pytest.mark.slow
def test_a_real_chat_model_converts_and_steers(smollm2: str, tmp_path: Path) -> None:
    """It hardly refuses, and says so; what counts is that the file steers this very model."""
    pairs = builtin_contrast()
    extractor = GgufExtractor(smollm2, n_threads=2, n_ctx=2048)
    some = replace(pairs.thinned(10), neutral={})
    made = measured(extractor, some, layers=(15, 15), over_refusal=0.1)
    extractor.close()
    assert any("seldom refuses" in warning for warning in made.warnings)
    assert made.scores.separation[made.vector.layer] > 0.65
    path = tmp_path / "smollm2.gguf"
    write_vector(made.vector, path)

    plain = Llama(smollm2, n_ctx=512, n_threads=2, verbose=False)
    steered = SteeredLlama(smollm2, vector=path, n_ctx=512, n_threads=2, verbose=False)
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}

    def mean_t(texts: Sequence[str]) -> float:
        options = greedy | {"max_tokens": 1}
        return float(
            np.mean(
                [steered.create_chat_completion([user(x)], **options)["mars"]["t"] for x in texts]
            )
        )

    assert mean_t(pairs.harmful[1::32]) > mean_t(pairs.harmless[1::32]) + 0.3

    geometry = made.vector.geometry
    message = [user("What is the capital of France?")]
    before = plain.create_chat_completion(message, **greedy)["choices"]
    for opens, changes in ((1e9, False), (-1e9, True)):
        forced = replace(opening_at(geometry, opens), trust_limit=3.0)
        steer(steered, replace(made.vector, geometry=forced))
        after = steered.create_chat_completion(message, **greedy)
        assert (after["choices"] != before) == changes
        assert (after["mars"]["alpha"] > 0) == changes
    plain.close()
    steered.close()
