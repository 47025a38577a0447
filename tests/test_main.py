from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import mars_gguf
from mars_gguf.__main__ import COMMANDS, main


def test_every_command_is_listed_and_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    listed = [line.split()[2] for line in capsys.readouterr().out.splitlines() if " -m " in line]
    assert listed == [f"mars_gguf.{name}" for name in COMMANDS]
    assert all(find_spec(name) is not None for name in listed)
    rooms = Path(mars_gguf.__file__).parent.glob("*/__main__.py")
    assert {room.parent.name for room in rooms} <= set(COMMANDS)
