"""The rule as it is, and alternatives to it, against conversions of the shipped model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reader_inputs import (
    AS_IT_IS,
    BLOCK,
    Cut,
    no_bar,
    requests,
)

from lab.reader.rules import coordinate, judged, thresholds
from lab.reader.states import (
    Seen,
)
from mars_gguf.convert.extract_gguf import GgufExtractor
from mars_gguf.convert.extractor import observe
from mars_gguf.convert.pipeline import Measurement
from mars_gguf.convert.prompts import Prompt
from mars_gguf.steering import Geometry


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


def gate_of(geometry: Geometry, extractor: GgufExtractor, prompts: list[Prompt]) -> np.ndarray:
    """Whether it opens, of each prompt."""
    m = prompts[0].modality
    states = observe(extractor, prompts, no_bar).states[:, BLOCK]
    return np.asarray([geometry.coordinate(h, m) > geometry.thresholds[m] for h in states])


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


def test_a_shift_cancels_with_thresholds_of_each_modality_and_not_with_one(seen: Seen) -> None:
    moved = replace(AS_IT_IS, recentred=False)
    assert judged(moved, seen) == judged(AS_IT_IS, seen)
    t, alike = (coordinate(rule, seen) for rule in (moved, AS_IT_IS))
    assert thresholds(moved, seen, t)["image"] != thresholds(AS_IT_IS, seen, alike)["image"]
    one = thresholds(replace(AS_IT_IS, alike=True), seen, alike)
    assert one["text"] == one["image"]
