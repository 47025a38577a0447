from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mars_gguf.chat.words import gauge, media_of


def test_what_a_message_carries_is_counted() -> None:
    assert media_of(0, 0) == ""
    assert media_of(1, 0) == "[1 picture] "
    assert media_of(3, 1) == "[3 pictures, video of 1 frame] "


@given(st.floats(-3, 3), st.floats(0.01, 1))
def test_the_gauge_has_the_dot_where_t_is(t: float, opens: float) -> None:
    line = gauge(t, opens).plain
    bar = line[line.index(" ") + 1 : line.index(" unsafe")]
    assert len(bar) == 41
    symbol = "◂" if t < -0.5 else "▸" if t > 1.5 else "●"
    place = bar.index(symbol)
    assert abs(-0.5 + place / 20 - min(max(t, -0.5), 1.5)) <= 0.026
    assert f"{t:.2f}" in line
