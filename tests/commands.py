"""The package's commands, run within a test as ``python -m`` runs them."""

from __future__ import annotations

import io
import json
import os
import runpy
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

from mars_gguf.demo_model import FOLDER


def command(module: str) -> Callable[[Sequence[str]], None]:
    """The command ``python -m MODULE``, as a function of its arguments."""
    return partial(_run, module)


def _run(module: str, arguments: Sequence[str]) -> None:
    with patch("sys.argv", [module, *arguments]):
        runpy.run_module(module, run_name="__main__")


convert = command("mars_gguf.convert")


def ended(module: str, *arguments: str | bytes, stdin: bytes = b"") -> CompletedProcess[str]:
    """The same with ``stdin`` to read, and what it printed, as a process would have ended."""
    printed, errors, code = io.StringIO(), io.StringIO(), 0
    words = [os.fsdecode(word) for word in arguments]
    try:
        with (
            patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin))),
            redirect_stdout(printed),
            redirect_stderr(errors),
        ):
            _run(module, words)
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        code = end.code or 0
    return CompletedProcess([module, *words], code, printed.getvalue(), errors.getvalue())


def few_prompts(folder: Path, n: int = 24) -> dict[str, Path]:
    """Files of the demo model's first ``n`` harmful and harmless prompts."""
    files = {}
    for side in ("harmful", "harmless"):
        lines = (FOLDER / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()
        files[side] = folder / f"{side}.jsonl"
        files[side].write_text("\n".join(lines[:n]), encoding="utf-8")
    return files


def few_media(folder: Path, n: int = 24) -> Path:
    """A file of its first ``n`` harmless prompts with pictures."""
    lines = (FOLDER / "neutral.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines[:n]]
    some = [entry | {"image": str(FOLDER / entry["image"])} for entry in entries]
    file = folder / "neutral.jsonl"
    file.write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
    return file


def recipe(folder: Path, output: str = "v.gguf", **sections: Mapping[str, Any]) -> str:
    """A recipe that writes ``output`` in ``folder``, of [model], [prompts] and so on."""
    lines = [f"output = {json.dumps(output)}"]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{k} = {json.dumps(v, default=str)}" for k, v in values.items())]
    path = folder / f"{output}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)
