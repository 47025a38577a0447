"""The commands on tiny random models of some families: convert, chat, evaluate and serve, with
pictures and a film."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import FAMILIES
from tiny.commands import COMMANDS
from tiny.subject import Subject

NAMES = ("qwen3vlmoe", "gemma3", "internvl-qwen2", "smolvlm", "lfm2", "mamba2", "falcon-h1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("check", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_work(name: str, check: str, place: Path) -> None:
    COMMANDS[check](Subject.of(FAMILIES[name], place))
