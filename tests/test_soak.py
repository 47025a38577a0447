"""A short piece of the long life that ``python -m tests.soak`` tries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_a_process_of_many_turns_leaves_nothing_over_and_replies_as_a_fresh_one() -> None:
    command = [sys.executable, "-m", "tests.soak", "--turns", "80", "--check-every", "20"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 turns ended as in a fresh process" in done.stdout
