"""Without the optional packages: a message that says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from models import DEMO


def without(package: str, module: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` where ``package`` cannot be imported."""
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[0] = {module!r}; "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "module", "options"),
    [
        ("safetensors", "convert", ["a.safetensors", "--model", DEMO]),
        ("torch", "convert", ["ORG/NAME"]),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, module: str, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"")
    paths = [str(tmp_path / option) if option[:2] == "a." else option for option in options]
    done = without(package, f"mars_gguf.{module}", *paths)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert f"import of {package} halted" in done.stderr
    assert "pip install 'mars-gguf[convert]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_needs_no_optional_package() -> None:
    done = without("torch", "mars_gguf.convert", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout
