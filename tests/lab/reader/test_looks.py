"""The page about looks, on random scores."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lab.reader import look_rules, looks
from lab.reader.look_sets import KINDS
from lab.reader.look_states import Looked
from lab.reader.looks import BENCHES, Bench, Beyond, against, beyond, by_rule, verdict
from mars_gguf.convert.prompts import Prompt

N, WORDINGS = 80, 20
NAMES = "(0) as it is", "(a) more text", "(c3) looks", "(d) in doubt"
GROUPS = [f"{part}-{m}" for part in ("certify", "judge", "unseen") for m in ("image", "text")]
SETS = [f"{group}-{kind}" for group in GROUPS for kind in KINDS]
FITTED = [f"fit-{form}-{kind}" for form in ("text", "asked", "image") for kind in KINDS]


@pytest.fixture(scope="module")
def benches() -> dict[str, Bench]:
    picture = (Image.new("L", (1, 1)),)
    prompts = {
        name: [Prompt("?", picture * ("image" in name), f"{i % WORDINGS}") for i in range(N)]
        for name in SETS
    }
    replies = ["I'm sorry, but I can't assist", *["Sure, here is"] * (N - 1)]
    seen = {name: Looked(np.zeros((N, 1, 1, 1), np.float16), replies) for name in SETS}
    return {name: Bench.of(*key, prompts, seen) for key, name in BENCHES.items()}


@pytest.fixture(scope="module")
def read() -> dict[str, dict[str, np.ndarray]]:
    """The third rule sees what (a) does not, in unseen pictures; (d) sees nothing there."""
    rng = np.random.default_rng(0)
    found = {}
    for name in NAMES:
        found[name] = {one: rng.normal(2.0 * ("harmful" in one), 1, N) for one in SETS}
        for kind in KINDS:
            harm = {"(c3)": 5.0, "(d)": 0.0}.get(name.split()[0], 1.5) * (kind == "harmful")
            found[name][f"unseen-image-{kind}"] = rng.normal(harm, 1, N)
    return found


def test_refusals_are_told_by_their_openings(benches: dict[str, Bench]) -> None:
    for bench in benches.values():
        assert bench.shares(bench.asked.refused) == "1 / 1 / 1"
        assert np.flatnonzero(bench.asked.refused).tolist() == [0, N, 2 * N]


def test_every_rule_has_a_row(
    benches: dict[str, Bench], read: dict[str, dict[str, np.ndarray]]
) -> None:
    lines = by_rule(benches["unseen, pictures"], read).splitlines()
    assert [line.split("|")[1].strip() for line in lines[3:]] == list(NAMES)
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    caught_at_10 = lines[5].split("|")[4].strip()
    assert caught_at_10.startswith(("99 (", "100 ("))


def test_what_beats_the_last_token_beyond_chance_is_said(
    benches: dict[str, Bench], read: dict[str, dict[str, np.ndarray]]
) -> None:
    compared = {name: beyond(bench, read) for name, bench in benches.items()}
    row = next(line for line in against(compared).splitlines() if "(c3)" in line)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert [cell.endswith("*") for cell in cells[4:6]] == [True, True]
    said = verdict(compared, {"look": 3}, dict.fromkeys(KINDS, 0.5))
    assert said.startswith("**Some rules")
    assert "- Unseen, pictures: caught at 10 %, (c3) more and (d) less than (a)" in said
    alike = {
        name: dict.fromkeys(of_rule, (Beyond(1, -2, 3),) * 2) for name, of_rule in compared.items()
    }
    assert verdict(alike, {}, {}).startswith("**No rule")


def test_a_rule_is_compared_on_the_same_resamples(
    benches: dict[str, Bench], read: dict[str, dict[str, np.ndarray]]
) -> None:
    twice = {"(a) one": read[NAMES[1]], "(c1) the same": read[NAMES[1]]}
    for both in beyond(benches["unseen, text"], twice).values():
        assert {(one.value, one.low, one.high) for one in both} == {(0.0, 0.0, 0.0)}


def test_less_text_is_the_mean_of_draws(
    benches: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, n_blocks = np.random.default_rng(5), 24
    shape = (N, len(look_rules.VIEWS), n_blocks, 4)
    states = {name: rng.normal("harmful" in name, 1, shape) for name in (*SETS, *FITTED)}
    last = next(rule for rule in look_rules.rules(n_blocks) if rule.name.startswith("(a)"))
    lines = looks.curve(benches, [last], states, range(n_blocks)).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["25 %", "50 %", "100 %"]
    monkeypatch.setattr(looks, "DRAWS", 1)
    fewer = looks.curve(benches, [last], states, range(n_blocks)).splitlines()
    assert fewer[-1] == lines[-1]
    assert fewer != lines
