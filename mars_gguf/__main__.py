"""``mars-gguf`` lists the commands; ``mars-gguf NAME ...`` is ``python -m mars_gguf.NAME ...``."""

from __future__ import annotations

import argparse
import sys
from runpy import run_module

from mars_gguf import __version__

COMMANDS = {
    "convert": "measure a model's refusal geometry and write it as a vector file",
    "chat": "chat with a steered model in the terminal",
    "evaluate": "measure what steering changes and costs, against simpler ways to steer",
    "server": "serve steered models behind the OpenAI API",
    "demo": "see what steering does, on the small model of the package",
    "rpc_server": "lend this machine's devices to models on another one",
    "vectors": "check a vector file and print what it holds; find, or publish, that of a model",
}


def parser() -> argparse.ArgumentParser:
    rows = [f"  mars-gguf {name:10}  {purpose}" for name, purpose in COMMANDS.items()]
    p = argparse.ArgumentParser(
        prog="mars-gguf",
        usage="mars-gguf [-h] [--version] COMMAND ...",
        description="Refusal steering for quantized multimodal models.",
        epilog="\n".join(["commands:", *rows, "\nEach takes --help."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    options = p.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="print this and exit")
    version = f"mars-gguf {__version__}"
    options.add_argument("--version", action="version", version=version, help="print it and exit")
    p.add_argument("command", nargs="?", choices=COMMANDS, help=argparse.SUPPRESS)
    p.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> None:
    """Runs the command that is named first with what follows its name; without one, lists all."""
    p = parser()
    args = p.parse_args(argv)
    if args.command is None:
        p.print_help()
        return
    sys.argv = [f"mars-gguf {args.command}", *args.arguments]
    run_module(f"mars_gguf.{args.command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
