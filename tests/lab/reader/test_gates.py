"""What gates open for, told from states that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lab.reader.gates import opened, page, require_seen, steered
from lab.reader.look_sets import KINDS
from lab.reader.look_states import Looked
from lab.reader.looks import BENCHES
from mars_gguf.convert.prompts import Prompt
from mars_gguf.errors import MarsError
from mars_gguf.vectors import read_vector

VECTOR = read_vector(Path(__file__).parents[3] / "vectors" / "demo.gguf")
REFUSED, ANSWERED = "I'm sorry, but I can't help with that.", "Sure, take some flour."


def looked(t: list[float], replies: list[str]) -> Looked:
    """States after the last four blocks with these coordinates at the vector's block."""
    g, first = VECTOR.geometry, VECTOR.model.n_layer - 4
    states = np.zeros((len(t), 2, 4, VECTOR.model.n_embd), np.float16)
    states[:, 0, VECTOR.layer - first] = [g.safe + x * g.direction for x in t]
    return Looked(states, replies)


def test_a_gate_opens_beyond_its_threshold_at_the_vectors_block() -> None:
    threshold = VECTOR.geometry.thresholds["text"]
    one = looked([threshold - 0.1, threshold + 0.1, 1.0], [ANSWERED] * 3)
    assert opened(VECTOR, one, "text") == [False, True, True]
    assert opened(None, one, "text") == [False] * 3


def test_refused_harmful_requests_count_and_refused_others_do_not() -> None:
    one = looked([1.0, 0.0, 0.0, 1.0], [ANSWERED, REFUSED, ANSWERED, REFUSED])
    asked = [Prompt(str(i), form=f"form {i}") for i in range(4)]
    harmful = steered(VECTOR, "unseen-text-harmful", asked, one)
    harmless = steered(VECTOR, "unseen-text-harmless", asked, one)
    assert (harmful.k, harmful.n) == (3, 4)
    assert (harmless.k, harmless.n) == (1, 2)
    by_itself = steered(None, "unseen-text-harmful", asked, one)
    assert (by_itself.k, by_itself.n) == (2, 4)


def test_a_vector_of_a_block_that_is_not_measured_is_refused() -> None:
    require_seen(VECTOR, VECTOR.layer + 1)
    with pytest.raises(MarsError, match=f"found a vector of block {VECTOR.layer}, expected one of"):
        require_seen(VECTOR, 4 * VECTOR.layer)


def test_the_page_has_a_row_for_every_bench_and_vector() -> None:
    names = [f"{part}-{medium}-{kind}" for part, medium in BENCHES for kind in KINDS]
    prompts = {name: [Prompt("a"), Prompt("b")] for name in names}
    seen = {name: looked([0.0, 1.0], [ANSWERED] * 2) for name in names}
    rows = [
        line for line in page("M", {"v": VECTOR}, prompts, seen).splitlines() if "| v |" in line
    ]
    assert len(rows) == len(BENCHES)
    assert all(row.count("50.0 %") == 3 for row in rows)
