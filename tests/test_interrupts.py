from __future__ import annotations

import signal
from typing import Any

import pytest

from mars_gguf.interrupts import interrupts_held


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler])
def test_the_handler_of_before_is_put_back(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupts_held():
            assert signal.getsignal(signal.SIGINT) != handler
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_until_the_block_ends() -> None:
    steps = []

    def work() -> None:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            steps.append("went on")
        steps.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["went on"]
