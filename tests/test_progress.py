"""What a bar shows of a task, and that nothing is shown where nobody looks."""

from __future__ import annotations

import os
import sys

import pytest

from mars_gguf.progress import progress_bar


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_bar_counts_what_is_done_of_what_is_expected_and_a_title_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown, written = os.openpty()
    before = os.dup(2)
    os.dup2(written, 2)
    try:
        with open(written, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            with progress_bar("Measuring \x1b[2J", 40, "prompts", done=10) as bar:
                bar.advance(5)
                bar.expect(3)
                bar.reach(17)
            said = os.read(shown, 1 << 16).decode()
    finally:
        os.dup2(before, 2)
    assert bar.shown and "17/18 prompts" in said and "\\x1b[2J" in said


def test_where_standard_error_is_no_terminal_or_nobody_wants_a_bar_it_only_counts(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for shown in (True, False):
        with progress_bar("Measuring", 4, shown=shown) as bar:
            bar.advance()
            assert not bar.shown
    assert capfd.readouterr().err == ""
