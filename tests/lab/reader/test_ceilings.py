from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reader_inputs import (
    AS_IT_IS,
)

from lab.reader.ceilings import as_read, caught, ceilings, refusing, trained
from lab.reader.rules import judged
from lab.reader.states import (
    Seen,
)
from lab.reader.tried import highest


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
