"""``python -m mars_gguf.vectors`` is the command ``mars-gguf vectors``."""

from __future__ import annotations

from runpy import run_module

if __name__ == "__main__":
    run_module("mars_gguf.vectors_command", run_name="__main__", alter_sys=True)
