"""What the README says, done."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest
from pages import README, ROOT

from mars_gguf.runtime.compat import SUPPORTED

TEXT = README.read_text("utf-8")


def test_it_has_at_most_150_lines() -> None:
    assert len(TEXT.splitlines()) <= 150


def test_the_python_example_runs_and_refuses() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("I'm sorry")
    assert "'modality': 'text'" in done.stdout


def test_every_command_of_the_documents_exists() -> None:
    documents = [README, ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
    named = {
        module
        for page in documents
        for module in re.findall(r"python -m (mars_gguf(?:\.\w+)*)", page.read_text("utf-8"))
    }
    for page in documents:
        code = "".join(re.findall(r"```bash\n.*?```|`[^`\n]+`", page.read_text("utf-8"), re.DOTALL))
        named |= {f"mars_gguf.{name}" for name in re.findall(r"\bmars-gguf ([a-z_]+)", code)}
    assert {"mars_gguf.convert", "mars_gguf.chat", "mars_gguf.demo"} <= named
    for module in sorted(named - {"mars_gguf", "mars_gguf.NAME"}):
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True)
        assert done.returncode == 0, module


def test_the_console_script_leads_to_the_commands() -> None:
    (script,) = entry_points(group="console_scripts", name="mars-gguf")
    assert callable(script.load())


@pytest.mark.parametrize("marker", ["demo", "tests"])
def test_each_marked_command_is_one_block_of_bash(marker: str) -> None:
    assert len(re.findall(rf"<!-- {marker} -->\n```bash\n[^\n]+\n```\n", TEXT)) == 1


def test_it_names_the_llama_cpp_python_that_the_runtime_checks_for() -> None:
    assert f"llama-cpp-python {SUPPORTED}" in TEXT
    requirements = metadata("mars-gguf").get_all("Requires-Dist") or []
    wanted = {part for line in requirements if line.startswith("llama-cpp-python")
              for part in re.findall(r"[<>=]+[\d.]+", line)}  # fmt: skip
    assert wanted == set(SUPPORTED.split(","))


def test_where_it_is_published_it_has_no_link_to_a_file_beside_it(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "--long-description"]
    published = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "# mars-gguf" in published and "Getting started" in published
    targets = re.findall(r"\]\(([^)]*)\)", published)
    assert targets and all(target.startswith("https://") for target in targets)
