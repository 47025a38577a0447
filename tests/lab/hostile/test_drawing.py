"""Hostile requests that are drawn from a seed."""

from __future__ import annotations

from itertools import combinations

from lab.hostile.drawing import CHAT, draw
from lab.hostile.extremes import EXTREMES, ROUTES
from mars_gguf.server.request_types import FIELDS, KNOWN


def test_the_same_seed_and_number_draw_the_same_request() -> None:
    for number in range(30):
        assert draw(7, number) == draw(7, number)
    assert [draw(7, n).content for n in range(30)] != [draw(8, n).content for n in range(30)]


def test_all_pairs_of_fields_are_drawn() -> None:
    drawn = {request.odd for n in range(4500) if (request := draw(0, n)).path == CHAT}
    assert drawn >= set(combinations(sorted(KNOWN["chat"]), 2))


def test_every_field_that_has_an_effect_has_extremes() -> None:
    taken = {name for row in FIELDS if "taken" in row for name in row["names"]}
    assert taken - EXTREMES.keys() <= {"conversation"}  # refused whatever it holds
    assert set().union(*KNOWN.values()) <= set().union(*ROUTES.values())
