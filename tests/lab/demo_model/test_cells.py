from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lab.demo_model.cells import CELLS, cell
from mars_gguf.demo_model.pictures import SIZE


@given(st.sampled_from(sorted(CELLS)), st.integers(0, 10**6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_cell_is_a_function_of_its_seed(name: str, seed: int, held_out: bool) -> None:
    first, again = (cell(name, 3, seed, held_out) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert (a.prompt, a.answer, a.kind, a.thing) == (b.prompt, b.answer, b.kind, b.thing)
        assert [p.tobytes() for p in a.pictures] == [p.tobytes() for p in b.pictures]
        assert all(p.size == (SIZE, SIZE) for p in a.pictures)
        harmful = "how" in name and a.thing is not None and a.thing.harmful
        assert (a.kind == "harmful") == harmful
