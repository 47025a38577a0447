"""What the README says, done."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import mars_gguf

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs_and_refuses() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("I'm sorry")
    assert "'modality': 'text'" in done.stdout


def test_every_command_it_names_exists() -> None:
    named = set(re.findall(r"python -m (mars_gguf(?:\.\w+)?)", README))
    assert {"mars_gguf", "mars_gguf.convert", "mars_gguf.chat", "mars_gguf.demo"} <= named
    for module in sorted(named - {"mars_gguf"}):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True)
        assert done.returncode == 0, module


def test_the_list_of_commands_is_complete() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "mars_gguf"], capture_output=True, text=True, check=True
    ).stdout
    package = Path(mars_gguf.__file__).parent
    modules = [p for p in package.glob("*.py") if "def main(" in p.read_text(encoding="utf-8")]
    packages = [p.parent for p in package.glob("*/__main__.py")]
    commands = {p.stem for p in [*modules, *packages]} - {"__main__"}
    for command in commands:
        assert f"mars_gguf.{command} " in listed


def test_every_console_script_leads_to_a_command() -> None:
    scripts = [s for s in entry_points(group="console_scripts") if s.name.startswith("mars-gguf-")]
    names = {script.name.removeprefix("mars-gguf-") for script in scripts}
    assert {"convert", "chat", "demo", "server", "vectors"} <= names
    for script in scripts:
        assert callable(script.load())
