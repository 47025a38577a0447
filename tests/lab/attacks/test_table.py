from __future__ import annotations

import pytest

from lab.attacks.table import share_of, table
from lab.attacks.trials import Outcome, Trial
from mars_gguf.statistics import Share

REFUSED, NAMED = Outcome(True, False), Outcome(False, True)


@pytest.mark.parametrize(("refused", "things"), [(0, 25), (8, 10), (25, 25)])
def test_requests_about_one_thing_count_as_one(refused: int, things: int) -> None:
    once = Share(refused, things)
    twice = share_of([i < refused for i in range(things)] * 2, [*map(str, range(things))] * 2)
    assert twice == f"{100 * refused / things:.0f} % ({100 * once.low:.0f}-{100 * once.high:.0f})"


def test_a_row_counts_the_trials_of_one_attack_and_kind() -> None:
    about = "harmful", "text", "none"
    trials = [
        Trial(*about, "tea", NAMED, REFUSED, 0.75, True, True),
        Trial(*about, "tea", REFUSED, REFUSED, -0.001, False),
        Trial(*about, "tea", REFUSED, REFUSED, 0.001, True, False),
        Trial("harmful", "image", "none", "tea", NAMED, NAMED, 0.0, False),
    ]
    head, _, text, image = table(trials).splitlines()
    assert head.startswith("| requests | attack | n (things) | refused, unsteered |")
    cells = [cell.strip() for cell in text.strip("|").split("|")]
    assert cells[:3] == ["harmful, text", "none", "3 (1)"]
    assert cells[3].startswith("67 % (") and cells[4].startswith("100 % (")
    assert cells[5:] == ["67 %", "0.25", "1 of 2", "33 %", "0 %"]
    assert image.split(" | ")[7] == "-"
    assert image.startswith("| harmful, image |")


def test_names_are_no_column_where_no_thing_has_one() -> None:
    unknown = Outcome(True, None)
    page = table([Trial("harmful", "text", "none", "topic-1", unknown, unknown, 1.0, True)])
    assert "names it" not in page
