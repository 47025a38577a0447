from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import ended

from mars_gguf.__main__ import COMMANDS
from mars_gguf.completion import SHELLS

# What a shell is asked for: its completions of the last word of each line, one line each.
ASK = {
    "bash": """. "$0"
        function=$(complete -p mars-gguf | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        for line; do
            IFS=' ' read -ra COMP_WORDS <<<"$line"
            [[ $line == *' ' ]] && COMP_WORDS+=('')
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
            "$function" mars-gguf "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[@]}"
        done""",
    "fish": """source $argv[1]
        for line in $argv[2..]; echo (complete -C $line | string replace -r '\\t.*' ''); end""",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("completion")
    files = {}
    for shell in SHELLS:
        done = ended("mars_gguf.completion", shell)
        assert done.returncode == 0, done.stderr
        files[shell] = folder / f"mars-gguf.{shell}"
        files[shell].write_text(done.stdout, encoding="utf-8")
    return files


@pytest.mark.parametrize("shell", ASK)
def test_a_shell_completes_commands_options_values_and_files(
    shell: str, scripts: dict[str, Path], tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "photo.jpg").touch()
    lines = ["mars-gguf ", "mars-gguf chat --mm", "mars-gguf chat --way ",
             "mars-gguf chat --image pho", "mars-gguf rpc"]  # fmt: skip
    arguments = [str(scripts[shell]), *lines]
    done = subprocess.run(
        [shell, "-c", ASK[shell], *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    commands, option, values, file, last = (line.split() for line in done.stdout.splitlines())
    assert set(COMMANDS) <= set(commands)
    assert option == ["--mmproj"]
    assert set(values) == {"auto", "cvec", "inline"}
    assert file == ["photo.jpg"]
    assert last == ["rpc_server"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_is_one_that_its_shell_reads(shell: str, scripts: dict[str, Path]) -> None:
    text = scripts[shell].read_text(encoding="utf-8")
    assert "%(" not in text  # of argparse's, not filled in
    assert "modality" in text and "mmproj" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(scripts[shell])], check=True)


def test_a_command_whose_extra_is_missing_is_completed_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mars_gguf.server.settings", None)
    done = ended("mars_gguf.completion", "bash")
    assert done.returncode == 0
    assert "chat_only" not in done.stdout and "server" in done.stdout


def test_a_shell_that_is_not_known_is_refused() -> None:
    done = ended("mars_gguf.completion", "cmd")
    assert done.returncode == 2 and "'bash', 'zsh', 'fish'" in done.stderr
