"""``mars-gguf completion SHELL`` prints the script by which that shell completes ``mars-gguf`` and
the options of its commands. How to install it is in docs/GETTING_STARTED.md."""

from __future__ import annotations

import argparse
import contextlib
from importlib import import_module

import shtab

from mars_gguf.__main__ import COMMANDS
from mars_gguf.console import command

SHELLS = ("bash", "zsh", "fish")
# Where the parser of a command is, if not in its __main__.
ELSEWHERE = {
    "server": "server.settings",
    "demo": "demo",
    "rpc_server": "rpc_server",
    "completion": "completion",
    "vectors": "vectors_command",
}
PATHS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY, "MODEL": shtab.FILE}  # by metavar


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mars-gguf completion", description=__doc__)
    p.add_argument("shell", choices=SHELLS)
    return p


def whole_parser() -> argparse.ArgumentParser:
    """The parser of ``mars-gguf`` with those of all its commands, which imports them.

    A command whose extra is not installed has no options.
    """
    whole = argparse.ArgumentParser(prog="mars-gguf")
    whole.add_argument("--version", action="store_true", help="print the version and exit")
    commands = whole.add_subparsers()
    for name, purpose in COMMANDS.items():
        parents = []
        with contextlib.suppress(ModuleNotFoundError):
            module = import_module(f"mars_gguf.{ELSEWHERE.get(name, f'{name}.__main__')}")
            parents.append(module.parser())
        one = commands.add_parser(name, help=purpose, parents=parents, add_help=not parents)
        for action in one._actions:
            if isinstance(action.metavar, str) and action.metavar in PATHS:
                action.complete = PATHS[action.metavar]  # type: ignore[attr-defined]
    return whole


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with command():
        print(shtab.complete(whole_parser(), shell=args.shell))


if __name__ == "__main__":
    main()
