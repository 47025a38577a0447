"""Alternatives to the converter's rules, on the shipped model: the rule as it is is the
converter's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from models import DEMO, DEMO_MMPROJ

from lab.reader.ceilings import as_read, caught, ceilings, refusing, trained
from lab.reader.rules import Rule, coordinate, judged, rules, thresholds
from lab.reader.states import (
    BLANK,
    DROPPED,
    LAST,
    MEAN,
    TAIL,
    WORDINGS,
    Seen,
    TailExtractor,
    measure,
)
from lab.reader.tried import highest, steered, table
from mars_gguf import demo, demo_model
from mars_gguf.convert.choices import Calibration
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.extractor import observe
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.pipeline import measure as measure_vector
from mars_gguf.convert.probes import paired_probes
from mars_gguf.convert.prompt_sets import PromptSets
from mars_gguf.convert.prompts import ContrastPrompts, Prompt, contexts, read_prompts
from mars_gguf.convert.splits import Split, Splits, split_prompts
from mars_gguf.media.images import load_image
from mars_gguf.runtime.sequences import CachedPrompt
from mars_gguf.steering import Geometry

BLOCK = 6
OPTIONS = Calibration(layers=(BLOCK, BLOCK), over_refusal=0.1)
AS_IT_IS = Rule("as it is", (BLOCK,), budgets=dict.fromkeys(("text", "image"), 0.1))
CONTEXTS = contexts()[:2]


class Cut(GgufExtractor):
    """Prompts end ``cut`` tokens before their ends."""

    cut = 0

    def cached(self, prompt: Prompt, number: int = 0) -> CachedPrompt:
        cached = super().cached(prompt, number)
        cached.tail = cached.tail[: len(cached.tail) - self.cut]
        return cached


@pytest.fixture(scope="module")
def plain() -> Iterator[Cut]:
    extractor = Cut(DEMO, DEMO_MMPROJ, n_threads=1)
    yield extractor
    extractor.close()


@pytest.fixture(scope="module")
def tails() -> Iterator[TailExtractor]:
    extractor = TailExtractor(DEMO, DEMO_MMPROJ, n_threads=1)
    yield extractor
    extractor.close()


def no_bar(n: int) -> None:
    """Tells nobody."""


def contrast() -> ContrastPrompts:
    sides = (read_prompts(demo_model.FOLDER / f"{side}.jsonl") for side in ("harmful", "harmless"))
    return ContrastPrompts(*sides).thinned(2)


def media() -> dict[str, Split]:
    image = paired_probes(demo_model.FOLDER / "neutral.jsonl", CONTEXTS)["image"]
    return {"image": Split(*(part[::3] for part in image))}


def requests() -> dict[tuple[str, str], list[Prompt]]:
    """Of the demo's, ten of each; what is harmless stands for what is borderline."""
    found: dict[tuple[str, str], list[Prompt]] = {}
    for asked in demo.requests():
        images = tuple(load_image(demo_model.FOLDER / "demo" / name) for name in asked.images)
        if asked.modality != "video":
            prompt = Prompt(asked.prompt, images, kind="".join(asked.images) or asked.prompt)
            found.setdefault((asked.modality, asked.kind), []).append(prompt)
    for form in ("text", "image"):
        found[form, "borderline"] = found[form, "harmless"][10:]
    return {name: prompts[:10] for name, prompts in found.items()}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split_prompts(contrast(), media(), CONTEXTS, OPTIONS.seed)


@pytest.fixture(scope="module")
def seen(tails: TailExtractor, splits: Splits) -> Seen:
    return measure(partial(observe, tails, advance=no_bar), splits, requests())


@pytest.fixture(scope="module")
def conversion(plain: Cut) -> Measurement:
    sets = PromptSets(contrast(), media(), CONTEXTS)
    return measure_vector(plain, sets, OPTIONS, source={}, progress=False)


def test_the_rule_as_it_is_is_that_of_a_conversion(seen: Seen, conversion: Measurement) -> None:
    t = coordinate(AS_IT_IS, seen)
    opens = thresholds(AS_IT_IS, seen, t)
    assert opens == pytest.approx(conversion.vector.geometry.thresholds, abs=0.003)
    for row in conversion.certificate.neutral:
        if not row.group:
            neutral = seen.certify[row.modality]
            assert len(neutral.prompts) == row.n
            assert (t(neutral, row.modality) > opens[row.modality]).sum() == row.k


def test_the_projection_is_that_of_a_conversion(seen: Seen, conversion: Measurement) -> None:
    """But for the shift, which a conversion measures along the read-out alone."""
    rule = replace(AS_IT_IS, shrinkage=1.0)
    named = conversion.vector.calibration["projection.threshold.text"]
    assert thresholds(rule, seen, coordinate(rule, seen))["text"] == pytest.approx(named, abs=0.003)


def test_shares_are_those_of_the_gate_of_a_conversion(
    seen: Seen, conversion: Measurement, plain: Cut
) -> None:
    shares, _ = judged(AS_IT_IS, seen)
    gated = {name: gate_of(conversion.vector.geometry, plain, p) for name, p in requests().items()}
    assert gated["image", "harmful"].mean() > 0
    for (form, kind), opened in gated.items():
        refused = seen.refusals.among(seen.requests[form, kind].replies)
        expected = opened | refused if kind == "harmful" else opened & ~refused
        assert shares[form, kind] == expected.mean()


def gate_of(geometry: Geometry, extractor: GgufExtractor, prompts: list[Prompt]) -> np.ndarray:
    """Whether it opens, of each prompt."""
    m = prompts[0].modality
    states = observe(extractor, prompts, no_bar).states[:, BLOCK]
    return np.asarray([geometry.coordinate(h, m) > geometry.thresholds[m] for h in states])


def test_views_are_of_the_last_tokens_and_of_prompts_without_their_pictures(
    seen: Seen, plain: Cut
) -> None:
    prompts = seen.requests["image", "harmful"].prompts[:3]
    views = seen.requests["image", "harmful"].states[:3]
    ends = []
    try:
        for plain.cut in range(TAIL):
            plain.forget()
            ends.append(observe(plain, prompts, no_bar).states)
    finally:
        plain.cut = 0
        plain.forget()
    close = partial(np.testing.assert_allclose, rtol=0.02, atol=0.02 * np.abs(ends[0]).max())
    close(views[:, :, LAST], ends[0])
    close(views[:, :, MEAN], np.mean(ends, axis=0))
    assert np.abs(views[:, :, LAST] - views[:, :, MEAN]).max() > 0.1 * np.abs(ends[0]).max()
    dropped = observe(plain, [replace(p, images=()) for p in prompts], no_bar).states
    close(views[:, :, DROPPED], dropped)
    assert np.abs(views[:, :, BLANK] - dropped).max() > 0.1 * np.abs(dropped).max()


def test_a_shift_cancels_with_thresholds_of_each_modality_and_not_with_one(seen: Seen) -> None:
    moved = replace(AS_IT_IS, recentred=False)
    assert judged(moved, seen) == judged(AS_IT_IS, seen)
    t, alike = (coordinate(rule, seen) for rule in (moved, AS_IT_IS))
    assert thresholds(moved, seen, t)["image"] != thresholds(AS_IT_IS, seen, alike)["image"]
    one = thresholds(replace(AS_IT_IS, alike=True), seen, alike)
    assert one["text"] == one["image"]


def test_every_alternative_has_a_row(seen: Seen, tails: TailExtractor) -> None:
    every = list(rules(tails.n_layer, BLOCK))
    assert len({rule.name for rule in every}) == len(every)
    lines = table(every, seen).splitlines()
    assert len(lines) == len(every) + 3
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_wordings_are_what_is_left_without_the_mean_over_a_picture(
    seen: Seen, splits: Splits
) -> None:
    prompts, states = splits.neutral["image"].fit, seen.fit["image"]
    for prompt, left, state in zip(prompts, seen.fit[WORDINGS], states, strict=True):
        alike = [x for p, x in zip(prompts, states, strict=True) if p.images == prompt.images]
        np.testing.assert_allclose(left, state - np.mean(alike, axis=0), atol=1e-3)


@pytest.mark.parametrize(
    ("n", "refused", "share"),
    [
        (100, [], 0.75),  # above 94: it opens for 95 to 99
        (100, [99, 98], 1.0),  # above 92
        (97, [], 1.0),  # above 92, for four
    ],
)
def test_a_threshold_of_its_own_lets_five_of_a_hundred_harmless_requests_through(
    n: int, refused: list[int], share: float
) -> None:
    harmless, harmful = np.arange(n), np.array([0, 93, 94.5, 97])
    t = {("f", "harmless"): harmless, ("f", "harmful"): harmful}
    by_itself = {("f", "harmless"): np.isin(harmless, refused), ("f", "harmful"): harmful == 0}
    assert caught(t, by_itself, "f") == share


def test_with_the_answers_known_no_less_is_caught(seen: Seen) -> None:
    shares, _ = judged(AS_IT_IS, seen)
    alike = shares["image", "harmless"]  # so that no more harmless ones pay for it
    own = caught(as_read(AS_IT_IS, seen), refusing(seen), "image", alike)
    assert own >= shares["image", "harmful"] > 0
    names = [name for name, _ in ceilings(AS_IT_IS, seen)]
    lines = highest(AS_IT_IS, seen).splitlines()
    assert len(lines) == len(names) + 2
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_a_trained_read_out_has_not_seen_what_it_reads(seen: Seen) -> None:
    """t is then linear in the state: the read-out does not move with it."""
    name, state = ("image", "harmful"), seen.requests["image", "harmful"].states
    found = []
    for factor in (1, 2, 3):
        states = state.copy()
        states[0] *= factor
        moved = replace(seen.requests[name], states=states)
        t = trained(AS_IT_IS, replace(seen, requests=seen.requests | {name: moved}), 0.5)
        found.append(t[name][0])
    assert found[2] - found[1] == pytest.approx(found[1] - found[0], rel=1e-3)
    assert abs(found[1] - found[0]) > 0.1


def test_what_the_model_refuses_anyway_is_not_forced(seen: Seen, tails: TailExtractor) -> None:
    """All that is harmful; and what is harmless is refused by force."""
    _, _, *rows = steered(tails, seen, (BLOCK,), no_bar).splitlines()
    (row,) = rows
    assert row.startswith(f"| block {BLOCK} | harmless, 10 requests |")
    assert "| 100 |" in row
