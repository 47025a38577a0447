"""The check of a device, on the one that every machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_steering_on_the_cpu_is_equal_to_the_bit() -> None:
    command = [sys.executable, "-m", "lab.devices", "-c", "512"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1].split(" | ")
    assert row[0].startswith("| CPU") and row[3:6] == ["equal"] * 3
