from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import ended

import mars_gguf
from mars_gguf.__main__ import COMMANDS, main
from mars_gguf.demo_model import VECTOR


def test_every_command_is_listed_and_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows if row[:1] == ["mars-gguf"]] == list(COMMANDS)
    assert all(find_spec(f"mars_gguf.{name}") is not None for name in COMMANDS)
    rooms = Path(mars_gguf.__file__).parent.glob("*/__main__.py")
    assert {room.parent.name for room in rooms} <= set(COMMANDS)


def test_a_command_by_its_name_is_its_module_with_every_option_and_exit_code() -> None:
    by_name = ended("mars_gguf", "vectors", str(VECTOR))
    assert by_name.returncode == 0
    assert by_name.stdout == ended("mars_gguf.vectors", str(VECTOR)).stdout
    by_name = ended("mars_gguf", "chat", "--demo", "--no-such-option")
    assert by_name.returncode == 2
    assert by_name.stderr.endswith(
        "mars-gguf chat: error: unrecognized arguments: --no-such-option\n"
    )
    assert ended("mars_gguf", "vectors", "--help").stdout.startswith("usage: mars-gguf vectors")


def test_a_name_that_is_no_command_is_refused_with_those_that_are() -> None:
    done = ended("mars_gguf", "chatt")
    assert done.returncode == 2
    assert "invalid choice: 'chatt'" in done.stderr and "rpc_server" in done.stderr


def test_the_version_is_told_without_importing_what_a_command_needs() -> None:
    code = "import sys; from mars_gguf.__main__ import main\ntry: main(['--version'])\n"
    code += "finally: print({'numpy', 'llama_cpp', 'rich'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"mars-gguf {mars_gguf.__version__}\nset()\n"
